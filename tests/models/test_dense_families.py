"""What the configs of the later dense families say, and what is refused in them."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from jaxinfer.config import ModelConfig, QueryTemperature, RopeSpec
from jaxinfer.errors import ConfigError, Unsupported
from jaxinfer.models.loading import load_model
from jaxinfer.models.registry import family_for, model_config
from jaxinfer.models.weights import recipes
from sharding import make_mesh
from tests.models.dict_source import DictSource
from tests.models.golden_case import CASES

BY_NAME = {case.name: case for case in CASES}
FULL, SLIDING = "full_attention", "sliding_attention"
WITHOUT = object()


def config_of(name: str, **fields: Any) -> dict[str, Any]:
    """A golden config with other fields; ``WITHOUT`` leaves one out."""
    config = {**BY_NAME[name].config, **fields}
    return {field: value for field, value in config.items() if value is not WITHOUT}


def windows(config: ModelConfig) -> list[int | None]:
    return [layer.mixer.window for layer in config.layers]


def rotates(config: ModelConfig) -> list[bool]:
    return [layer.mixer.rope is not None for layer in config.layers]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cohere2", [16, 16, 16, None, 16]),
        ("exaone4", [16, None, 16, None, 16]),
        ("cwm", [None, 16, 16, 16, None]),
        ("vaultgemma", [16, None, 16, None, 16]),
        ("ministral", [16] * 5),
    ],
)
def test_windows_where_the_config_does_not_list_them(name, expected):
    config = model_config(config_of(name, layer_types=WITHOUT, num_hidden_layers=5))
    assert windows(config) == expected


def test_a_command_r_is_as_long_as_its_authors_say():
    config = config_of("cohere")
    assert model_config(config).max_len == config["max_position_embeddings"]
    assert model_config({**config, "model_max_length": 4096}).max_len == 4096


@pytest.mark.parametrize("name", ["cohere2", "exaone4"])
def test_layers_that_see_everything_do_not_rotate(name):
    config = model_config(config_of(name, layer_types=[FULL, SLIDING]))
    assert windows(config) == [None, 16]
    assert rotates(config) == [False, True]


def test_an_exaone_without_windows_rotates_in_all_layers():
    assert rotates(model_config(config_of("exaone4_full"))) == [True, True]
    by_rule = config_of("exaone4_full", layer_types=WITHOUT, sliding_window_pattern="LLLG")
    assert model_config(by_rule) == model_config(config_of("exaone4_full"))


def test_a_pattern_in_letters_needs_the_list_of_layers():
    written = config_of("exaone4", sliding_window_pattern="LG")
    assert model_config(written) == model_config(config_of("exaone4"))
    with pytest.raises(ConfigError, match="sliding_window_pattern = 'LG'"):
        model_config(config_of("exaone4", sliding_window_pattern="LG", layer_types=WITHOUT))


YARN = {"factor": 4.0, "original_max_position_embeddings": 16, "mscale": 1.0, "mscale_all_dim": 1.0}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("cohere", {"rope_theta": 500000.0}),
        (
            "cohere2",
            {
                "rope_theta": 10000,
                "position_embedding_type": "rope_gptj",
                "rotary_pct": 1.0,
                "sliding_window_pattern": 2,
                "layer_switch": 2,
                "layer_types": WITHOUT,
                "use_qk_norm": False,
                "use_parallel_block": True,
                "use_parallel_embedding": True,
            },
        ),
        ("glm4", {"partial_rotary_factor": 0.5, "rope_theta": 10000.0}),
        ("stablelm", {"partial_rotary_factor": 0.25}),
        ("nemotron", {"partial_rotary_factor": 0.5}),
        ("phi", {"partial_rotary_factor": 0.5, "rope_scaling": None}),
        (
            "hunyuan",
            {
                "rope_theta": 10000.0,
                "rope_scaling": {"type": "dynamic", "alpha": 50, "factor": 1, "beta_fast": 32},
                "attention_head_dim": 16,
                "use_qk_norm": True,
                "num_experts": 1,
                "pad_id": 0,
            },
        ),
        (
            "ministral3",
            {
                "rope_theta": 10000.0,
                "rope_scaling": {"type": "yarn", "llama_4_scaling_beta": 0.5, **YARN},
            },
        ),
        ("helium", {"rope_theta": 100000.0}),
        ("ernie4_5", {"rope_theta": 500000.0}),
    ],
)
def test_the_old_and_the_new_style_of_a_config_are_one_model(name, fields):
    new = config_of(name)
    new_rope = new["rope_parameters"]
    if "rope_scaling" not in fields and "rope_theta" in fields:
        new["rope_parameters"] = {**new_rope, "rope_theta": fields["rope_theta"]}
    assert model_config(config_of(name, rope_parameters=WITHOUT, **fields)) == model_config(new)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("cohere2", {"use_qk_norm": True}, "use_qk_norm = True"),
        ("cohere2", {"position_embedding_type": "nope"}, "position_embedding_type = 'nope'"),
        ("cohere", {"logit_scale": -0.5}, "logit_scale = -0.5"),
        ("cwm", {"attention_bias": True}, "attention_bias = True"),
        ("stablelm", {"head_dim": 32}, "head_dim = 32"),
        ("phi", {"tie_word_embeddings": True}, "tie_word_embeddings = True"),
        ("hunyuan", {"use_cla": True}, "use_cla = True"),
        ("hunyuan", {"num_experts": 8}, "num_experts = 8"),
        ("hunyuan", {"attention_head_dim": 32}, "attention_head_dim = 32.*must be 16"),
        (
            "hunyuan",
            {"rope_parameters": {"rope_type": "yarn", "alpha": 2.0}},
            "rope_parameters.rope_type = 'yarn'",
        ),
        (
            "hunyuan",
            {"rope_parameters": {"rope_type": "dynamic", "alpha": 0.5}},
            "rope_parameters.alpha = 0.5.*1 or more",
        ),
        (
            "hunyuan",
            {"rope_parameters": {"rope_type": "dynamic", "alpha": 2.0, "mrope_section": [4]}},
            r"rope_parameters.mrope_section = \[4\]",
        ),
        ("ministral3", {"rope_parameters": {}}, "rope_parameters = {}"),
        (
            "ministral3",
            {"rope_parameters": {"rope_type": "default", "llama_4_scaling_beta": 0.1}},
            "rope_parameters.original_max_position_embeddings is missing",
        ),
        ("ministral3", {"model_type": "mistral3"}, "text_config is missing"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(name, fields, message):
    with pytest.raises(ConfigError, match=message):
        model_config(config_of(name, **fields))


def test_an_alpha_raises_the_base_of_the_rope_whatever_the_length():
    rope = model_config(config_of("hunyuan")).layers[0].mixer.rope
    assert rope == RopeSpec(theta=10000.0 * 50.0 ** (16 / 14), rotary_dim=16)
    plain = {"rope_type": "dynamic", "factor": 1.0, "rope_theta": 10000.0}
    rope = model_config(config_of("hunyuan", rope_parameters=plain)).layers[0].mixer.rope
    assert rope is not None
    assert rope.theta == 10000.0


def test_queries_grow_only_where_there_is_a_beta():
    parameters = BY_NAME["ministral3"].config["rope_parameters"]
    grown = model_config(config_of("ministral3"))
    assert grown.query_temperatures == (QueryTemperature(beta=0.5, interval=16),)
    without = {**parameters, "llama_4_scaling_beta": 0}
    plain = model_config(config_of("ministral3", rope_parameters=without))
    assert plain.query_temperatures == ()
    assert plain.ropes == grown.ropes


def multimodal(text: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "model_type": "mistral3",
        "architectures": ["Mistral3ForConditionalGeneration"],
        "text_config": text,
        "vision_config": {"model_type": "pixtral", "hidden_size": 1024},
        "image_token_index": 10,
        "multimodal_projector_bias": False,
        "projector_hidden_act": "gelu",
        "spatial_merge_size": 2,
        "vision_feature_layer": -1,
        **fields,
    }


@pytest.mark.parametrize("name", ["ministral3", "mistral"])
def test_a_multimodal_mistral_is_the_model_of_its_text(name):
    text = config_of(name, eos_token_id=WITHOUT)
    expected = replace(model_config(config_of(name)), eos_token_ids=(5,), tied_head=True)
    assert model_config(multimodal(text, eos_token_id=5)) == expected
    with pytest.raises(ConfigError, match=r"text_config\.num_experts = 4"):
        model_config(multimodal({**text, "num_experts": 4}))
    with pytest.raises(Unsupported, match="quantization_config"):
        model_config(multimodal(text, quantization_config={"quant_method": "awq"}))


def test_whether_the_head_of_a_multimodal_mistral_is_tied_its_text_does_not_say():
    for said in (True, False):
        text = config_of("ministral3", tie_word_embeddings=not said)
        assert model_config(multimodal(text, tie_word_embeddings=said)).tied_head == said
    assert model_config(multimodal(text)).tied_head


@pytest.mark.parametrize("model_type", ["mistral4", ["mistral"], "llama"])
def test_another_text_in_a_multimodal_mistral_is_refused(model_type):
    text = config_of("ministral3", model_type=model_type)
    with pytest.raises(ConfigError, match=r"text_config\.model_type = .*ministral3, mistral"):
        model_config(multimodal(text))


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [(r"^(?=model\.|lm_head\.)", "language_model."), (r"^model\.", "model.language_model.")],
)
def test_the_tensors_of_a_multimodal_mistral_are_those_of_its_text(pattern, replacement):
    case = BY_NAME["ministral3"]
    shapes = {re.sub(pattern, replacement, name): shape for name, shape in case.shapes.items()}
    assert set(shapes) != set(case.shapes)
    vision = {
        "vision_tower.patch_conv.weight": (4, 4),
        "model.multi_modal_projector.linear_1.weight": (4, 4),
    }
    config = multimodal(case.config, tie_word_embeddings=False)
    source = DictSource(config, {**shapes, **vision})
    model = load_model(source, mesh=make_mesh())
    assert model.num_params == sum(np.prod(shape) for shape in case.shapes.values())


def test_the_norm_of_each_head_is_a_row_of_its_own():
    case = BY_NAME["stablelm_parallel"]
    source, config = case.source, model_config(case.config)
    rules = {rule.target: rule for rule in recipes(family_for(case.config), config)}
    for part, num_heads in (("q", 4), ("k", 2)):
        scale_NH = rules[f"layers.1.mixer.{part}_norm.scale"].read(source)
        assert scale_NH.shape == (num_heads, 16)
        name = f"model.layers.1.self_attn.{part}_layernorm.norms.1.weight"
        np.testing.assert_array_equal(scale_NH[1], source.read(name))
