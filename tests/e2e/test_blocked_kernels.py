"""With one slot, bfloat16 and a CPU that packs nothing, decode takes its own form of the weights:
the same tokens."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxinfer.decoding.programs import _compile, _compiler_options
from jaxinfer.engine.build import build_engine
from jaxinfer.models.layout import for_decoding
from jaxinfer.models.loading import dummy_model
from jaxinfer.models.model import Model
from jaxinfer.models.registry import model_config
from pallas_kernels import native
from sharding import make_mesh
from tests.e2e.tiny import prompts, request, serve, tokens_of

CONFIG = {
    "model_type": "llama",
    "vocab_size": 192,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
# What the two forms make of one token differs by less than 1e-3 in bfloat16.
SMALLEST_GAP = 5e-3
PARAMS = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True, "logprobs": 2}


@pytest.fixture(autouse=True)
def _nothing_is_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "missing", lambda: "left out by this test")


def wide_model() -> Model:
    """Weights twice as large as at random, so that the best two logits are apart."""
    model = dummy_model(model_config(CONFIG), mesh=make_mesh(), seed=1)
    return replace(model, params=jax.tree.map(lambda leaf: leaf + leaf, model.params))


def tokens_with(slots: int) -> dict:
    engine = build_engine(
        wide_model(),
        None,
        max_num_seqs=slots,
        max_num_batched_tokens=32,
        prefill_tokens=(32,),
        page_size=8,
        num_pages=33,
        prompt_logprobs=False,
    )
    assert for_decoding(wide_model(), slots).is_blocked == (slots <= 2)
    asked = [request(f"r{i}", p, **PARAMS) for i, p in enumerate(prompts(3, [5, 21]))]
    events = serve(engine, asked)
    for position in (position for event in events for position in event.logprobs):
        best, second = sorted((entry.logprob for entry in position.values()), reverse=True)[:2]
        assert best - second > SMALLEST_GAP, "choose other prompts"
    return tokens_of(events, asked)


def test_one_slot_with_blocked_kernels_gives_the_tokens_of_four_with_plain_ones() -> None:
    assert tokens_with(1) == tokens_with(4)


def test_a_blocked_model_asks_for_its_compiler_options_and_a_plain_one_for_none() -> None:
    assert _compiler_options("decode/1", for_decoding(wide_model(), 1))[0]
    assert _compiler_options("decode/1", wide_model()) == ({},)


@pytest.mark.parametrize(
    "unknown", [{"xla_cpu_no_such_option": True}, {"xla_cpu_opt_preset": "CPU_OPT_PRESET_NONE"}]
)
def test_an_option_that_this_compiler_does_not_know_is_done_without(unknown: dict) -> None:
    lowered = jax.jit(lambda x: x + x).lower(jax.ShapeDtypeStruct((2,), "float32"))
    with pytest.raises(jax.errors.JaxRuntimeError):
        lowered.compile(compiler_options=unknown)
    assert _compile(lowered, (unknown, {}))(np.ones(2, np.float32)).tolist() == [2, 2]
