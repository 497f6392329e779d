"""Latent attention in specs and configs: what is read, and what is refused by which name."""

import math

import pytest

from jaxinfer.config import LatentSpec, MlpSpec, NormSpec, RopeSpec, YarnScaling
from jaxinfer.errors import ConfigError
from jaxinfer.models.registry import model_config
from jaxinfer.presets import find_config
from tests.models.golden_case import GoldenCase

SIZES = {"num_heads": 4, "kv_rank": 16, "nope_dim": 12, "rope_dim": 8, "value_dim": 10}
ROPE = RopeSpec(theta=1e4, rotary_dim=8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kv_rank": 0}, "LatentSpec.kv_rank = 0"),
        ({"value_dim": -1}, "LatentSpec.value_dim = -1"),
        ({"q_rank": 0, "query_norm": NormSpec()}, "LatentSpec.q_rank = 0"),
        ({"rope": RopeSpec(theta=1e4, rotary_dim=4)}, "rotary_dim = 4.*rope_dim = 8"),
        ({"q_rank": 8}, "query_norm = None.*given with q_rank"),
        ({"query_norm": NormSpec()}, "query_norm = NormSpec.*not without"),
    ],
)
def test_latents_that_cannot_be_are_refused_by_the_name_of_the_field(fields, message):
    with pytest.raises(ConfigError, match=message):
        LatentSpec(**SIZES | {"rope": ROPE, "latent_norm": NormSpec()} | fields)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("deepseek_v2", {"num_key_value_heads": 2}, "num_key_value_heads = 2.*4"),
        ("deepseek_v2", {"kv_lora_rank": 0}, "kv_lora_rank = 0"),
        ("deepseek_v2", {"qk_rope_head_dim": 7}, "qk_rope_head_dim = 7.*even"),
        ("deepseek_v3", {"q_lora_rank": "24"}, "q_lora_rank = '24'"),
        ("deepseek_v3", {"rope_interleave": 1}, "rope_interleave = 1.*true or false"),
        ("minicpm3", {"scale_depth": -1.0}, "scale_depth = -1.0.*above 0"),
        ("minicpm3", {"qk_rope_head_dim": 10**9}, "qk_rope_head_dim = 1000000000"),
    ],
)
def test_fields_that_make_no_latent_attention_are_refused_by_name(name, fields, message):
    with pytest.raises(ConfigError, match=message):
        model_config({**GoldenCase(name).config, **fields})


def test_deepseek_v3_is_what_its_paper_says():
    config = model_config(find_config("deepseek-v3"))
    mixer = config.layers[0].latent
    assert (mixer.num_heads, mixer.q_rank, mixer.kv_rank) == (128, 1536, 512)
    assert (mixer.nope_dim, mixer.rope_dim, mixer.value_dim) == (128, 64, 128)
    assert mixer.rope.interleaved
    assert isinstance(mixer.rope.scaling, YarnScaling)
    assert mixer.softmax_scale == pytest.approx(192**-0.5 * (0.1 * math.log(40) + 1) ** 2)
    assert [isinstance(layer.mlp, MlpSpec) for layer in config.layers] == [True] * 3 + [False] * 58


def test_a_field_that_is_left_out_is_not_one_that_is_null():
    lite = find_config("deepseek-v2-lite")
    assert model_config(lite).layers[0].latent.q_rank is None
    del lite["q_lora_rank"]
    assert model_config(lite).layers[0].latent.q_rank == 1536


def test_kimi_k2_is_deepseek_v3():
    v3 = find_config("deepseek-v3")
    kimi = model_config({**v3, "model_type": "kimi_k2"})
    assert kimi.layers == model_config(v3).layers
