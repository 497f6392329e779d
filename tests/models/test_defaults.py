"""What a config means by a field that it leaves out is what transformers means by it."""

import json
from dataclasses import replace
from typing import Any

import pytest

from jaxinfer.config import Llama3Scaling, ModelConfig, QueryTemperature, YarnScaling
from jaxinfer.errors import ConfigError
from jaxinfer.models.registry import FAMILIES, model_config
from tests.models.golden_case import GOLDEN, GoldenCase

DEFAULTS = json.loads((GOLDEN / "defaults.json").read_text(encoding="utf-8"))
#: Sizes that a config has to say here: a model of which they were guessed would be none.
SIZES = (
    "vocab_size",
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("max_position_embeddings", "n_embd", "n_layer", "n_head", "n_positions"),
)


def shortest(config: dict[str, Any], stated: dict[str, Any]) -> dict[str, Any]:
    """The config with nothing but its type, its sizes and what else has to be said."""
    kept = {name: config[name] for name in ("model_type", *SIZES, *stated) if name in config}
    if "text_config" in config:
        kept["text_config"] = shortest(config["text_config"], stated)
    return kept


def without_ids(config: dict[str, Any]) -> ModelConfig:
    """The model but for its ids: they are of a tokenizer, and here only a config gives any."""
    return replace(model_config(config), bos_token_id=None, eos_token_ids=())


@pytest.mark.parametrize("model_type", DEFAULTS)
def test_fields_that_are_left_out_mean_what_transformers_means(model_type):
    config, stated = DEFAULTS[model_type]["config"], DEFAULTS[model_type]["stated"]
    short = shortest(config, stated)
    assert len(short) < len(config)
    assert without_ids(short) == without_ids(config)


def test_every_model_type_that_transformers_has_is_in_the_table():
    ours = {model_type for family in FAMILIES for model_type in family.model_types}
    assert ours - set(DEFAULTS) == {"kimi_k2"}
    assert set(DEFAULTS) <= ours


@pytest.mark.parametrize(
    ("name", "scaling"),
    [
        (
            "cwm",
            Llama3Scaling(
                factor=16.0, low_freq_factor=1.0, high_freq_factor=4.0, original_len=8192
            ),
        ),
        ("gpt_oss", YarnScaling(factor=32.0, original_len=4096, truncate=False)),
        (
            "ministral3",
            YarnScaling(factor=16.0, original_len=16384, mscale=1.0, mscale_all_dim=1.0),
        ),
    ],
)
def test_a_rope_that_is_not_stated_is_that_of_the_published_models(name, scaling):
    for unstated in ({"rope_parameters": None}, {"rope_parameters": None, "rope_scaling": {}}):
        model = model_config({**GoldenCase(name).config, **unstated})
        assert [rope.scaling for rope in model.ropes] == [scaling]
        if name == "ministral3":
            assert model.query_temperatures == (QueryTemperature(beta=0.1, interval=16384),)


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        ("mixtral", "num_local_experts", "num_experts"),
        ("qwen3_moe", "num_local_experts", "num_experts"),
        ("ernie4_5_moe", "moe_k", "num_experts_per_tok"),
    ],
)
def test_a_field_under_its_other_name_goes_before_a_default(name, ours, theirs):
    config = dict(GoldenCase(name).config)
    renamed = {**config, theirs: config[ours]}
    del renamed[ours]
    assert model_config(renamed) == model_config(config)


def test_a_default_that_does_not_fit_is_refused_as_one():
    config = dict(GoldenCase("mistral").config)
    del config["num_key_value_heads"]
    message = "num_key_value_heads = 8, what it means where it is left out, is not allowed"
    with pytest.raises(ConfigError, match=message):
        model_config(config)
