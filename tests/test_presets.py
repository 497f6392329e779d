"""find_config: names, refusals, and sizes that agree with the published ones."""

import pytest

from jaxinfer.errors import ModelNotFound
from jaxinfer.models.model import blank_model
from jaxinfer.models.registry import model_config
from jaxinfer.presets import config_names, find_config
from sharding import make_mesh

# As each model's safetensors headers count them.
PUBLISHED_PARAMETERS = {
    "deepseek-v2-lite": 15_706_484_224,
    # The paper's 671B: what predicts a second token (layer 61) and the scales of FP8 are left out.
    "deepseek-v3": 671_026_419_200,
    "gemma3-270m": 268_098_176,
    "gpt-oss-20b": 20_914_757_184,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "mistral-7b-v0.1": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "qwen3-0.6b": 596_049_920,
    "qwen3-30b-a3b": 30_532_122_624,
    "smollm2-135m": 134_515_008,
}

#: As transformers 5.19 counts the parameters of the language part, and the scalar of each layer.
COUNTED_BY_TRANSFORMERS = {
    "gemma3n-e2b": 4_435_182_688,
    "gemma3n-e4b": 6_835_235_568,
    "gemma4-26b-a4b": 25_233_141_760 + 30,
    "gemma4-31b": 30_697_345_280 + 60,
    "gemma4-e2b": 4_628_569_344 + 35,
    "gemma4-e4b": 7_463_013_376 + 42,
}


def count_parameters(config: dict) -> int:
    """The parameters of a gated decoder with RMSNorm, from the fields of its config."""
    if "kv_lora_rank" in config:
        return count_deepseek_parameters(config)
    width, num_layers = config["hidden_size"], config["num_hidden_layers"]
    num_heads, num_kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim", width // num_heads)
    norms_a_layer = {"gemma3_text": 4, "qwen3": 2}.get(config["model_type"], 2) * width
    if config["model_type"] in ("gemma3_text", "qwen3", "qwen3_moe"):
        norms_a_layer += 2 * head_dim
    attention = 2 * width * head_dim * (num_heads + num_kv_heads)
    mlp = 3 * width * config.get("moe_intermediate_size", config["intermediate_size"])
    num_experts = config.get("num_experts", config.get("num_local_experts"))
    if config["model_type"] == "gpt_oss":  # biases everywhere, and a sink for each head
        attention += 2 * num_kv_heads * head_dim + num_heads * head_dim + width + num_heads
        mlp += 2 * config["intermediate_size"] + width + 1
    if num_experts is not None:
        mlp = num_experts * (mlp + width)  # each with its column of the router
    tables = 1 if config["tie_word_embeddings"] else 2
    layers = num_layers * (attention + mlp + norms_a_layer)
    return tables * config["vocab_size"] * width + layers + width


def count_deepseek_parameters(config: dict) -> int:
    """Likewise with latent attention, shared experts, and layers without experts at first."""
    width, num_heads = config["hidden_size"], config["num_attention_heads"]
    q_rank, rank = config["q_lora_rank"], config["kv_lora_rank"]
    nope, rope, value = (config[f] for f in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    q_size = num_heads * (nope + rope)
    queries = width * q_size if q_rank is None else q_rank * (width + 1 + q_size)
    latents = width * (rank + rope) + rank + rank * num_heads * (nope + value)
    attention = queries + latents + num_heads * value * width
    num_experts, num_layers = config["n_routed_experts"], config["num_hidden_layers"]
    experts = 3 * width * config["moe_intermediate_size"]
    experts *= num_experts + config["n_shared_experts"]
    experts += num_experts * (width + (config["model_type"] == "deepseek_v3"))
    dense, num_dense = 3 * width * config["intermediate_size"], config["first_k_dense_replace"]
    mlps = num_dense * dense + (num_layers - num_dense) * experts
    return 2 * config["vocab_size"] * width + num_layers * (attention + 2 * width) + mlps + width


@pytest.mark.parametrize("name", PUBLISHED_PARAMETERS)
def test_every_config_has_as_many_parameters_as_its_model(name):
    assert count_parameters(find_config(name)) == PUBLISHED_PARAMETERS[name]


@pytest.mark.parametrize("name", COUNTED_BY_TRANSFORMERS)
def test_decoders_have_as_many_parameters_as_those_of_transformers(name):
    model = blank_model(model_config(find_config(name)), mesh=make_mesh())
    assert model.num_params == COUNTED_BY_TRANSFORMERS[name]


def test_names_are_those_of_the_known_sizes():
    assert config_names() == tuple(sorted(PUBLISHED_PARAMETERS | COUNTED_BY_TRANSFORMERS))


def test_layer_types_name_every_layer():
    config = find_config("gemma3-270m")
    assert len(config["layer_types"]) == config["num_hidden_layers"]
    full = [i for i, kind in enumerate(config["layer_types"]) if kind == "full_attention"]
    assert full == [5, 11, 17]


@pytest.mark.parametrize("name", ["", "llama", "../pyproject", "/etc/passwd", "llama-3.1-8b.toml"])
def test_an_unknown_name_is_refused_with_the_known_ones(name):
    with pytest.raises(ModelNotFound, match=r"there are deepseek-v2-lite, .*llama-3\.1-8b"):
        find_config(name)


def test_what_a_file_says_is_null_is_there_and_null():
    config = find_config("deepseek-v2-lite")
    assert config["q_lora_rank"] is None
    assert "null" not in config
