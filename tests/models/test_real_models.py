"""The models that `jaxinfer pull` fetches, continued as transformers continues them."""

import json

import numpy as np
import pytest

from jaxinfer.checkpoint.known import KNOWN_MODELS, cached
from jaxinfer.checkpoint.source import open_source
from jaxinfer.models.loading import load_model
from sharding import make_mesh
from tests.models.golden_case import GOLDEN
from tests.models.reference_forward import logits_of
from tests.models.test_families_parity import FLOAT32


@pytest.mark.slow
@pytest.mark.real_model
@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_a_pulled_model_continues_as_it_does_in_transformers(name):
    path = cached(name)
    if path is None:
        pytest.skip(f"{name} has not been pulled")
    stored = json.loads((GOLDEN / "real.json").read_text(encoding="utf-8"))
    expected = stored[KNOWN_MODELS[name].file_name]
    with open_source(path) as source:
        model = load_model(source, mesh=make_mesh(), dtype="float32")
    sequences = [np.array(one["prompt"] + one["greedy"][:-1]) for one in expected]
    for one, logits_TV in zip(expected, logits_of(model, sequences), strict=True):
        logits_jV = logits_TV[len(one["prompt"]) - 1 :].astype(np.float64)
        np.testing.assert_array_equal(logits_jV.argmax(axis=-1), one["greedy"])
        log_probs_j = logits_jV.max(axis=-1) - np.logaddexp.reduce(logits_jV, axis=-1)
        np.testing.assert_allclose(log_probs_j, one["log_probs"], **FLOAT32)
