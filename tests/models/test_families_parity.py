"""Every family against Hugging Face's transformers: the same log-probabilities, the same tokens."""

import jax
import numpy as np
import pytest

from jaxinfer.models.registry import family_for
from jaxinfer.models.tied_head import checkpoint_config
from jaxinfer.models.weights import recipes
from jaxinfer.ops import latent
from tests.models.dense_forward import dense_logits
from tests.models.golden_case import CASES, GoldenCase, GoldenSequence
from tests.models.reference_forward import logits

#: Both sides compute in float32; what is left is rounding, of sums in another order.
FLOAT32 = {"rtol": 0.0, "atol": 1e-4}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_plain_meaning_of_a_config_is_what_transformers_computes(case):
    source = case.source
    config = checkpoint_config(source)
    rules = recipes(family_for(case.config), config, source.tensors)
    params = {rule.target: rule.read(source) for rule in rules}
    for sequence in case.sequences:
        logits_TV = dense_logits(config, params, sequence.tokens, case.max_len or config.max_len)
        assert_golden(sequence, logits_TV)


def of_each_family() -> list:
    """All cases; those after the first of a family are slow, for most is made of the same specs."""
    first = {family_for(case.config).name: case for case in reversed(CASES)}
    return [
        pytest.param(case, id=str(case), marks=() if case in first.values() else pytest.mark.slow)
        for case in CASES
    ]


@pytest.mark.parametrize("case", of_each_family())
def test_the_decoder_computes_what_transformers_computes(case: GoldenCase):
    for sequence, logits_TV in zip(case.sequences, logits(case), strict=True):
        assert_golden(sequence, logits_TV)


@pytest.fixture
def traced_anew():
    """Constants of modules are read while a program is traced, and traces are kept."""
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.usefixtures("traced_anew")
@pytest.mark.parametrize(
    "name", ["deepseek_v2", pytest.param("deepseek_v3_halves", marks=pytest.mark.slow)]
)
def test_latent_attention_with_keys_and_values_made_computes_it_too(name, monkeypatch):
    """The form of long prefills, which these sequences are too short for; both rope layouts."""
    monkeypatch.setattr(latent, "EXPANDED_FROM", 8)
    layers, expanded = [], latent._expanded
    monkeypatch.setattr(latent, "_expanded", lambda *args: layers.append(1) or expanded(*args))
    case = GoldenCase(name)
    for sequence, logits_TV in zip(case.sequences, logits(case), strict=True):
        assert_golden(sequence, logits_TV)
    assert len(layers) >= len(checkpoint_config(case.source).layers)


def assert_golden(sequence: GoldenSequence, logits_TV: np.ndarray) -> None:
    """The stored log-probabilities, and each greedy token after those before it."""
    logits_TV = logits_TV.astype(np.float64)
    greedy = logits_TV[len(sequence.prompt) - 1 :].argmax(axis=-1)
    np.testing.assert_array_equal(greedy, sequence.greedy)
    chosen_nV = logits_TV[sequence.positions]
    log_probs_nV = chosen_nV - np.logaddexp.reduce(chosen_nV, axis=-1, keepdims=True)
    np.testing.assert_allclose(log_probs_nV, sequence.log_probs, **FLOAT32)
