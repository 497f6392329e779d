"""Llama 4: what its configs say of layers, what is refused, and how long a context is served."""

import pytest

from jaxinfer.cache import layer_groups
from jaxinfer.config import AttentionSpec, MoeSpec, QueryTemperature
from jaxinfer.engine.build import EngineBuilder
from jaxinfer.errors import ConfigError, InvalidParameter
from jaxinfer.models.loading import load_model
from jaxinfer.models.model import blank_model
from jaxinfer.models.registry import model_config
from sharding import make_mesh
from tests.models.dict_source import DictSource
from tests.models.golden_case import GoldenCase

CASE = GoldenCase("llama4")


def mixers(**fields: object) -> list[AttentionSpec]:
    return [layer.mixer for layer in model_config({**CASE.config, **fields}).layers]


def test_layers_have_rope_and_a_chunk_or_neither_and_a_temperature():
    *with_rope, without = mixers()
    assert all(mixer.rope is not None and mixer.chunk == 16 for mixer in with_rope)
    assert (without.rope, without.chunk, without.qk_norm) == (None, None, None)
    assert without.query_temperature == QueryTemperature(beta=0.5, interval=8, offset=1)


def test_every_fourth_layer_has_no_rope_where_none_is_named():
    for fields in ({"no_rope_layers": []}, {"no_rope_layers": None}):
        assert [mixer.rope is None for mixer in mixers(**fields)] == [False, False, False, True]
    every_second = mixers(no_rope_layers=[], no_rope_layer_interval=2, layer_types=None)
    assert [mixer.chunk for mixer in every_second] == [16, None, 16, None]


@pytest.mark.parametrize("tuning", [True, 4])
def test_the_first_configs_say_four_where_they_mean_true(tuning):
    assert mixers(attn_temperature_tuning=tuning)[3].query_temperature is not None


@pytest.mark.parametrize(
    ("fields", "sparse"),
    [
        ({}, [1, 3]),
        ({"moe_layers": None}, [1, 3]),
        ({"moe_layers": None, "interleave_moe_layer_step": 1}, [0, 1, 2, 3]),
        ({"moe_layers": [2]}, [2]),
    ],
)
def test_experts_are_in_the_layers_that_are_named_or_in_the_last_of_every_step(fields, sparse):
    layers = model_config({**CASE.config, **fields}).layers
    assert [i for i, layer in enumerate(layers) if isinstance(layer.mlp, MoeSpec)] == sparse


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"no_rope_layers": [1, 0]}, r"no_rope_layers = \[1, 0\].*4 times 0 or 1"),
        ({"no_rope_layers": [1, 2, 1, 0]}, "no_rope_layers"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types.*chunked_attention"),
        ({"moe_layers": [4]}, r"moe_layers = \[4\].*below 4"),
        ({"attention_chunk_size": 0}, "attention_chunk_size = 0"),
        ({"attention_chunk_size": 60}, "attention_chunk_size = 60.*a multiple of 8"),
        ({"attn_temperature_tuning": 2}, "attn_temperature_tuning = 2"),
        ({"floor_scale": 0}, "floor_scale = 0"),
        ({"interleave_moe_layer_step": 0}, "interleave_moe_layer_step = 0"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok = 5"),
        ({"clip_qkv": 1.0}, "clip_qkv = 1.0"),
    ],
)
def test_what_cannot_be_is_refused_by_the_name_of_its_field(fields, message):
    with pytest.raises(ConfigError, match=message):
        model_config({**CASE.config, **fields})


def test_layers_in_chunks_keep_one_chunk_and_the_others_everything():
    config = model_config({**CASE.config, "max_position_embeddings": 4096})
    assert config.max_len == 4096
    full, chunks = layer_groups(config)
    assert (full.window, full.layers) == (None, (3,))
    assert (chunks.window, chunks.layers) == (16, (0, 1, 2))
    [full] = layer_groups(model_config({**CASE.config, "attention_chunk_size": None}))
    assert (full.window, full.layers) == (None, (0, 1, 2, 3))


def test_pages_that_reach_over_the_end_of_a_chunk_are_refused():
    model = blank_model(model_config(CASE.config), mesh=make_mesh())
    with pytest.raises(InvalidParameter, match=r"page_size = 32 .* must be one of 8, 16;"):
        EngineBuilder(model, page_size=32)


def test_of_a_multimodal_checkpoint_the_language_model_is_taken():
    text = {**CASE.config, "tie_word_embeddings": None}
    whole = {
        "model_type": "llama4",
        "text_config": text,
        "vision_config": {"hidden_size": 8},
        "image_token_index": 3,
        "tie_word_embeddings": False,
    }
    names = {f"language_model.{name}": shape for name, shape in CASE.shapes.items()}
    others = {"vision_model.class_embedding": (8,), "multi_modal_projector.linear_1.weight": (8, 8)}
    model = load_model(DictSource(whole, names | others), mesh=make_mesh())
    assert model.config == model_config(CASE.config)
