"""Configs and tensor names of every family: what is read, what is refused, what fills what."""

import math
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxinfer.config import DynamicScaling, LongropeScaling, ModelConfig, RopeSpec
from jaxinfer.errors import ConfigError, Unsupported
from jaxinfer.models.loading import load_model
from jaxinfer.models.registry import FAMILIES, family_for, model_config
from jaxinfer.models.tied_head import checkpoint_config
from jaxinfer.models.weights import recipes
from jaxinfer.presets import config_names, find_config
from sharding import make_mesh
from tests.models.dict_source import DictSource
from tests.models.golden_case import CASES, GoldenCase

CONFIGS = {case.name: case.config for case in CASES}
LLAMA = CONFIGS["llama"]
#: Tensors of the half of a multimodal model that is passed over.
SEES = ("vision_tower.", "multi_modal_projector.")
HOSTILE = [-1, 0, 10**12, 10**400, 1.5, math.nan, math.inf, "48", True, [], {}, [[]], {"a": 1}, ""]


def old_style(name: str, **fields) -> dict:
    """A golden config in the fields of transformers before version 5."""
    config = {**CONFIGS[name], **fields}
    del config["rope_parameters"]
    config["torch_dtype"] = config.pop("dtype")
    return config


def layers_with(config: ModelConfig, field: str) -> list:
    return [getattr(layer.mixer, field) for layer in config.layers]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_rules_of_a_family_use_every_tensor_of_its_checkpoints(case: GoldenCase):
    source, family = case.source, family_for(case.config)
    rules = list(recipes(family, checkpoint_config(source), source.tensors))
    used = {name for rule in rules for name in rule.sources}
    passed_over = [name for name in source.tensors if name not in used]
    assert used <= set(source.tensors)
    assert all(name.startswith(SEES) for name in passed_over)
    assert all(family.ignores(family.canonical_name(name)) for name in passed_over)
    assert len({rule.target for rule in rules}) == len(rules)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_rules_of_a_family_fill_every_parameter_of_the_decoder(case: GoldenCase):
    model = load_model(case.source, mesh=make_mesh(), dtype="float32")
    numbers = (np.prod(case.shapes[name]) for name in case.shapes if not name.startswith(SEES))
    assert model.num_params == sum(numbers)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(model.params))


@pytest.mark.parametrize("name", config_names())
def test_every_preset_is_a_config_of_a_family(name):
    assert isinstance(model_config(find_config(name)), ModelConfig)


def test_every_family_has_a_golden_case():
    covered = {family_for(case.config).name for case in CASES}
    assert covered == {family.name for family in FAMILIES}


@pytest.mark.parametrize("model_type", ["bert", None, 7, ["llama"]])
def test_an_unknown_model_type_is_refused_with_the_known_ones(model_type):
    with pytest.raises(ConfigError, match=r"model_type = .*known: .*gemma, gemma2, .*starcoder2"):
        model_config({**LLAMA, "model_type": model_type})


@pytest.mark.parametrize("config", [[], "llama", None, 3])
def test_a_config_that_is_no_json_object_is_refused(config):
    with pytest.raises(ConfigError, match="not a JSON object"):
        model_config(config)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_unknown_field_is_refused_by_its_name_and_a_null_one_is_absent(case: GoldenCase):
    with pytest.raises(ConfigError, match="num_towers = 8"):
        model_config({**case.config, "num_towers": 8})
    without = model_config(case.config)
    assert model_config({**case.config, "num_towers": None}) == without


@pytest.mark.parametrize(
    "field", ["vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size"]
)
def test_a_missing_size_is_refused_by_its_name(field):
    config = {name: value for name, value in LLAMA.items() if name != field}
    with pytest.raises(ConfigError, match=f"the field {field} is missing"):
        model_config(config)


@pytest.mark.parametrize("value", HOSTILE, ids=repr)
@pytest.mark.parametrize(
    "field",
    [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "max_position_embeddings",
    ],
)
def test_a_hostile_size_is_refused_by_its_name(field, value):
    with pytest.raises(ConfigError, match=f"{field} = "):
        model_config({**LLAMA, field: value})


@given(st.data())
def test_any_field_with_any_value_is_a_model_or_a_refusal(data):
    config = dict(data.draw(st.sampled_from(list(CONFIGS.values()))))
    field = data.draw(st.sampled_from(sorted(config)))
    if isinstance(config[field], dict) and data.draw(st.booleans()):
        inner = data.draw(st.sampled_from(sorted(config[field])))
        config[field] = {**config[field], inner: data.draw(st.sampled_from(HOSTILE))}
    else:
        config[field] = data.draw(st.sampled_from(HOSTILE))
    try:
        model = model_config(config)
    except (ConfigError, Unsupported):
        return
    assert isinstance(model, ModelConfig)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("llama", {"hidden_act": "quick_gelu"}, "hidden_act = 'quick_gelu'.*one of silu, swish"),
        ("llama", {"attention_bias": "qkv"}, "attention_bias = 'qkv'.*true or false"),
        ("llama", {"rms_norm_eps": math.nan}, "rms_norm_eps = nan"),
        (
            "llama",
            {"num_key_value_heads": 3},
            "num_key_value_heads = 3.*divisor of num_attention_heads = 4",
        ),
        ("llama", {"head_dim": None, "num_attention_heads": 5}, "num_attention_heads = 5"),
        ("llama", {"num_hidden_layers": 5000}, "num_hidden_layers = 5000.*from 1 to 4096"),
        ("llama", {"dtype": "int8"}, "dtype = 'int8'"),
        ("llama", {"eos_token_id": [2, -1]}, "eos_token_id"),
        ("llama", {"rope_interleaved": True}, "rope_interleaved = True"),
        ("llama", {"is_encoder_decoder": True}, "is_encoder_decoder = True"),
        ("llama", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
        ("llama", {"rope_parameters": {"rope_type": "mrope"}}, "rope_parameters.rope_type = 'mro"),
        ("llama", {"rope_parameters": {"mrope_section": [4]}}, "rope_parameters.mrope_section"),
        ("llama", {"rope_parameters": {"rope_theta": 1.0}}, "rope_theta = 1.0.*above 1"),
        (
            "llama",
            {"rope_parameters": {"partial_rotary_factor": 2.0}},
            "rope_parameters.partial_rotary_factor = 2.0.*at most 1",
        ),
        ("llama", {"head_dim": 15}, "head_dim = 15.*even"),
        ("llama", {"rms_norm_eps": 0}, "^rms_norm_eps = 0.0.*above 0"),
        ("gpt2", {"layer_norm_epsilon": 0}, "^layer_norm_epsilon = 0.0.*above 0"),
        ("gpt_neox", {"layer_norm_eps": 0}, "^layer_norm_eps = 0.0.*above 0"),
        ("starcoder2", {"norm_epsilon": 0}, "^norm_epsilon = 0.0.*above 0"),
        ("phimoe", {"rms_norm_eps": 0}, "^rms_norm_eps = 0.0.*above 0"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": -1}},
            "rope_parameters.factor = -1.0.*above 0",
        ),
        (
            "glm4",
            {"rope_parameters": {"partial_rotary_factor": 0.2}},
            "rope_parameters.partial_rotary_factor = 0.2.*the 16 numbers of a head.*and not 3",
        ),
        (
            "llama",
            {"head_dim": 2, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            "rope_parameters.rope_type = 'dynamic'.*only 2 numbers",
        ),
        (
            "phi3_longrope_short",
            {"hidden_size": 96},
            r"rope_parameters.short_factor = \(1.0, 1.1, 1.3\).*a list of 6 numbers",
        ),
        (
            "llama_yarn",
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 0.5}},
            "beta_fast = 0.5.*beta_slow = 1.0 at least",
        ),
        (
            "phi3_longrope_short",
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "rope_theta": 1e4,
                    "partial_rotary_factor": 0.5,
                    "short_factor": [1.0, 1.1, 1.3],
                    "long_factor": [1.5, 2.5],
                }
            },
            r"rope_parameters.long_factor = \(1.5, 2.5\).*a list of 3 numbers",
        ),
        (
            "gemma3",
            {"rope_parameters": None, "rope_local_base_freq": 1.0},
            "rope_local_base_freq = 1.0.*above 1",
        ),
        (
            "gpt_neox",
            {"rope_parameters": None, "rotary_emb_base": 1},
            "rotary_emb_base = 1.0.*above 1",
        ),
        ("gpt_neox", {"rope_parameters": None, "rotary_pct": 0}, "rotary_pct = 0.0.*above 0"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "both given"),
        ("llama_linear", {"rope_parameters": {"rope_type": "linear"}}, "factor is missing"),
        ("phi3", {"attention_bias": True}, "attention_bias = True"),
        ("qwen2", {"layer_types": ["sliding_attention"] * 3}, "no sliding window"),
        ("qwen2", {"layer_types": ["full_attention"] * 2}, "3 times 'full_attention' or"),
        ("qwen3", {"layer_types": ["linear_attention"] * 3}, "3 times 'full_attention' or"),
        ("smollm3", {"no_rope_layers": [1, 0]}, "4 times 0 or 1"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention = True"),
        ("starcoder2", {"norm_type": "rms_norm"}, "norm_type = 'rms_norm'"),
        ("gpt2", {"n_head": 5}, "n_head = 5.*divisor of n_embd = 48"),
    ],
)
def test_a_known_field_with_a_value_not_supported_is_refused_with_what_is(name, fields, message):
    with pytest.raises(ConfigError, match=message):
        model_config({**CONFIGS[name], **fields})


def test_a_quantised_checkpoint_is_a_clear_no():
    with pytest.raises(Unsupported, match=r"quantization_config = \{'quant_method': 'awq'\}"):
        model_config({**LLAMA, "quantization_config": {"quant_method": "awq"}})


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("llama", {"rope_theta": 10000.0, "rope_scaling": None}),
        ("llama_linear", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
        ("llama_dynamic", {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}),
        (
            "llama_llama3",
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 32,
                }
            },
        ),
        (
            "llama_yarn",
            {
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 4,
                    "original_max_position_embeddings": 16,
                    "finetuned": True,
                }
            },
        ),
        ("smollm3", {}),
        (
            "gemma3",
            {
                "rope_theta": 1000000.0,
                "rope_local_base_freq": 10000.0,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
        ),
        (
            "phi3_longrope_short",
            {
                "partial_rotary_factor": 0.5,
                "rope_scaling": {
                    "type": "su",
                    "short_factor": [1.0, 1.1, 1.3],
                    "long_factor": [1.5, 2.5, 4.0],
                },
            },
        ),
        ("gemma3n", {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0}),
        ("mixtral", {"rope_theta": 1000000.0}),
        ("glm4_moe", {"rope_theta": 10000.0, "rope_scaling": None}),
        (
            "phimoe_longrope_short",
            {
                "rope_theta": 10000.0,
                "original_max_position_embeddings": 64,
                "rope_scaling": {
                    "type": "longrope",
                    "short_factor": [1.0, 1.1, 1.3, 1.5, 1.7, 2.0],
                    "long_factor": [1.5, 2.0, 2.5, 3.0, 4.0, 5.0],
                    "short_mscale": 1.1,
                    "long_mscale": 1.25,
                    "original_max_position_embeddings": 64,
                },
            },
        ),
        ("gpt_neox_sequential", {"rotary_emb_base": 10000, "rotary_pct": 0.5}),
        # Some writers gave both the family's names and the common ones.
        ("gpt_neox", {"rotary_pct": 0.25, "rope_theta": 10000, "partial_rotary_factor": 0.25}),
    ],
)
def test_the_old_and_the_new_style_of_a_config_are_one_model(name, fields):
    assert model_config(old_style(name, **fields)) == model_config(CONFIGS[name])


def test_a_multimodal_config_is_the_model_of_its_text():
    text = {field: value for field, value in CONFIGS["gemma3"].items() if field != "eos_token_id"}
    outer = {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "eos_token_id": [1, 106],
        "text_config": text,
        "vision_config": {"hidden_size": 1152},
        "is_encoder_decoder": False,
        "mm_tokens_per_image": 256,
    }
    expected = replace(model_config(CONFIGS["gemma3"]), eos_token_ids=(1, 106))
    assert model_config(outer) == expected
    with pytest.raises(ConfigError, match=r"text_config\.num_experts = 4"):
        model_config({**outer, "text_config": {**text, "num_experts": 4}})


def test_what_a_large_gemma_3_leaves_out_is_filled_in():
    config = model_config(
        {
            "model_type": "gemma3",
            "text_config": {
                "model_type": "gemma3_text",
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "num_hidden_layers": 34,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024,
            },
        }
    )
    mixer = config.layers[0].mixer
    assert (mixer.num_heads, mixer.num_kv_heads, mixer.head_dim) == (8, 4, 256)
    assert (config.vocab_size, config.max_len, config.tied_head) == (262208, 131072, True)
    assert layers_with(config, "window")[:7] == [1024] * 5 + [None, 1024]
    assert [rope.theta for rope in config.ropes] == [1e4, 1e6]


@pytest.mark.parametrize(
    ("name", "windows"),
    [
        ("llama", [None, None, None]),
        ("mistral", [16, 16, 16]),
        ("qwen2", [None, None, None]),
        ("qwen2_windows", [None, 16, 16]),
        ("gemma2", [16, None, 16, None]),
        ("gemma3", [16, None, 16]),
        ("olmo3", [16, 16, None]),
    ],
)
def test_windows_are_in_the_layers_that_have_them(name, windows):
    assert layers_with(model_config(CONFIGS[name]), "window") == windows
    by_rule = {field: value for field, value in CONFIGS[name].items() if field != "layer_types"}
    if name in ("qwen2_windows", "gemma2"):
        assert layers_with(model_config(by_rule), "window") == windows


def test_every_fourth_layer_of_smollm3_has_no_rope():
    ropes = layers_with(model_config(CONFIGS["smollm3"]), "rope")
    assert [rope is None for rope in ropes] == [False, False, False, True]
    by_rule = {f: v for f, v in CONFIGS["smollm3"].items() if f != "no_rope_layers"}
    assert model_config(by_rule) == model_config(CONFIGS["smollm3"])


def test_only_the_full_layers_of_olmo3_have_a_stretched_rope():
    ropes = layers_with(model_config(CONFIGS["olmo3"]), "rope")
    assert [rope.scaling is None for rope in ropes] == [True, True, False]


def test_a_rope_that_stretches_makes_the_context_longer():
    dynamic = model_config(CONFIGS["llama_dynamic"])
    scaling = DynamicScaling(factor=4.0, original_len=16)
    assert dynamic.layers[0].mixer.rope == RopeSpec(theta=1e4, rotary_dim=16, scaling=scaling)
    assert dynamic.max_len == 64
    yarn = {**CONFIGS["llama_yarn"], "max_position_embeddings": 16}
    assert model_config(yarn).max_len == 64


def test_the_factor_of_longrope_is_the_ratio_of_the_two_contexts():
    rope = model_config(CONFIGS["phi3_longrope_short"]).layers[0].mixer.rope
    assert rope is not None
    assert rope.rotary_dim == 6
    assert isinstance(rope.scaling, LongropeScaling)
    assert (rope.scaling.original_len, rope.scaling.factor) == (64, 4.0)


def test_ids_and_dtype_are_read_in_all_their_forms():
    config = model_config(
        {**LLAMA, "eos_token_id": [2, 5], "dtype": None, "torch_dtype": "float16"}
    )
    assert (config.bos_token_id, config.eos_token_ids, config.dtype) == (1, (2, 5), "float16")
    bare = {f: v for f, v in LLAMA.items() if f not in ("bos_token_id", "eos_token_id", "dtype")}
    assert model_config(bare).bos_token_id is None
    assert model_config(bare).eos_token_ids == ()


@pytest.mark.parametrize(
    ("name", "pattern", "replacement"),
    [
        ("gpt2", r"^transformer\.", ""),
        ("gpt_neox", r"^embed_out\.", "lm_head."),
        ("gemma3", r"^model\.", "language_model.model."),
        ("gemma3", r"^model\.", "model.language_model."),
    ],
)
def test_tensors_under_the_names_of_other_writers_are_the_same_tensors(name, pattern, replacement):
    [case] = [case for case in CASES if case.name == name]
    family, config = family_for(case.config), model_config(case.config)
    renamed = {re.sub(pattern, replacement, name): name for name in case.shapes}
    assert set(renamed) != set(case.shapes)
    usual = {rule.target: rule.source for rule in recipes(family, config)}
    for rule in recipes(family, config, renamed):
        assert renamed[rule.source] == usual[rule.target]


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("gpt2", "h.11.attn.bias"),
        ("gpt2", "transformer.h.0.attn.masked_bias"),
        ("gpt_neox", "gpt_neox.layers.3.attention.masked_bias"),
        ("deepseek_v3", "model.layers.61.self_attn.kv_b_proj.weight"),
        ("gemma3", "vision_tower.vision_model.embeddings.patch_embedding.weight"),
    ],
)
def test_buffers_in_a_checkpoint_are_passed_over(name, tensor):
    [case] = [case for case in CASES if case.name == name]
    source = DictSource(case.config, {**case.shapes, tensor: (4, 4)})
    assert load_model(source, mesh=make_mesh()).num_params > 0


def test_parts_of_a_fused_tensor_are_cut_where_they_meet():
    [case] = [case for case in CASES if case.name == "gpt_neox"]
    source, config = case.source, model_config(case.config)
    rules = {rule.target: rule for rule in recipes(family_for(case.config), config)}
    fused = source.read("gpt_neox.layers.1.attention.query_key_value.weight")
    head_dim, second_head = 16, 1
    for part, name in enumerate("qkv"):
        kernel_DX = rules[f"layers.1.mixer.{name}.kernel"].read(source)
        start = (3 * second_head + part) * head_dim
        columns = kernel_DX[:, second_head * head_dim : (second_head + 1) * head_dim]
        np.testing.assert_array_equal(columns.T, fused[start : start + head_dim])
