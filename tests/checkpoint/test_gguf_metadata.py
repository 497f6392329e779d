"""GGUF metadata becomes the config.json that the Hugging Face models were published with."""

import numpy as np
import pytest

from jaxinfer.checkpoint.gguf import GgufSource
from jaxinfer.errors import CorruptCheckpoint, Unsupported

#: Keys that say nothing beyond the architecture; the tests of a family leave them out.
COMMON = {
    ".context_length": 2048,
    ".embedding_length": 64,
    ".feed_forward_length": 128,
    ".block_count": 3,
    ".attention.head_count": 4,
    ".attention.head_count_kv": 2,
    ".attention.layer_norm_rms_epsilon": 1e-6,
}
COMMON_HF = {
    "max_position_embeddings": 2048,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "vocab_size": 10,
    "tie_word_embeddings": True,
}
SLIDING, FULL = "sliding_attention", "full_attention"


@pytest.fixture
def translate(write_gguf):
    def config_of(architecture, metadata, names=(), vectors=None):
        tensors = {"token_embd.weight": np.zeros((10, 64), np.float32)}
        tensors |= {f"blk.{layer}.attn_norm.weight": np.zeros(64, np.float32) for layer in range(3)}
        tensors |= {name: np.zeros((8, 64), np.float32) for name in names}
        tensors |= vectors or {}
        with GgufSource(write_gguf(architecture, metadata, tensors)) as source:
            return source.config

    return config_of


@pytest.mark.parametrize(
    ("architecture", "metadata", "expected"),
    [
        (
            "llama",
            {".rope.freq_base": 500000.0, ".rope.dimension_count": 16},
            {
                "model_type": "llama",
                "architectures": ["LlamaForCausalLM"],
                "rope_theta": 500000.0,
                "hidden_act": "silu",
                "attention_bias": False,
                "mlp_bias": False,
            },
        ),
        (
            "llama",
            {".attention.sliding_window": 256, ".attention.key_length": 32},
            {
                "model_type": "mistral",
                "architectures": ["MistralForCausalLM"],
                "hidden_act": "silu",
                "head_dim": 32,
                "sliding_window": 256,
            },
        ),
        (
            "smollm3",
            {},
            {
                "model_type": "smollm3",
                "architectures": ["SmolLM3ForCausalLM"],
                "hidden_act": "silu",
                "no_rope_layer_interval": 4,
                "no_rope_layers": [1, 1, 1],
                "attention_bias": False,
                "mlp_bias": False,
            },
        ),
        (
            "granite",
            {
                ".attention.scale": 0.015625,
                ".embedding_scale": 12.0,
                ".residual_scale": 0.22,
                ".logit_scale": 8.0,
            },
            {
                "model_type": "granite",
                "architectures": ["GraniteForCausalLM"],
                "hidden_act": "silu",
                "attention_bias": False,
                "mlp_bias": False,
                "attention_multiplier": 0.015625,
                "embedding_multiplier": 12.0,
                "residual_multiplier": 0.22,
                "logits_scaling": 8.0,
            },
        ),
        (
            "qwen2",
            {},
            {
                "model_type": "qwen2",
                "architectures": ["Qwen2ForCausalLM"],
                "hidden_act": "silu",
                "use_sliding_window": False,
            },
        ),
        (
            "qwen3",
            {".attention.key_length": 128},
            {
                "model_type": "qwen3",
                "architectures": ["Qwen3ForCausalLM"],
                "hidden_act": "silu",
                "head_dim": 128,
                "use_sliding_window": False,
                "attention_bias": False,
            },
        ),
        (
            "gemma",
            {".attention.key_length": 32},
            {
                "model_type": "gemma",
                "architectures": ["GemmaForCausalLM"],
                "hidden_act": "gelu_pytorch_tanh",
                "hidden_activation": "gelu_pytorch_tanh",
                "attention_bias": False,
                "head_dim": 32,
            },
        ),
        (
            "gemma2",
            {
                ".attention.key_length": 32,
                ".attention.sliding_window": 1024,
                ".attn_logit_softcapping": 50.0,
                ".final_logit_softcapping": 30.0,
            },
            {
                "model_type": "gemma2",
                "architectures": ["Gemma2ForCausalLM"],
                "hidden_act": "gelu_pytorch_tanh",
                "hidden_activation": "gelu_pytorch_tanh",
                "attention_bias": False,
                "head_dim": 32,
                "query_pre_attn_scalar": 32,
                "sliding_window": 1024,
                "layer_types": [SLIDING, FULL, SLIDING],
                "attn_logit_softcapping": 50.0,
                "final_logit_softcapping": 30.0,
            },
        ),
        (
            "phi3",
            {
                ".rope.scaling.original_context_length": 1024,
                ".rope.dimension_count": 12,
                ".attention.sliding_window": 0,
            },
            {
                "model_type": "phi3",
                "architectures": ["Phi3ForCausalLM"],
                "hidden_act": "silu",
                "partial_rotary_factor": 0.75,
                "sliding_window": None,
                "original_max_position_embeddings": 1024,
            },
        ),
        (
            "olmo2",
            {},
            {
                "model_type": "olmo2",
                "architectures": ["Olmo2ForCausalLM"],
                "hidden_act": "silu",
                "attention_bias": False,
            },
        ),
        (
            "olmo2",
            {
                ".attention.sliding_window": 512,
                ".attention.sliding_window_pattern": [True, True, False],
            },
            {
                "model_type": "olmo3",
                "architectures": ["Olmo3ForCausalLM"],
                "hidden_act": "silu",
                "attention_bias": False,
                "sliding_window": 512,
                "layer_types": [SLIDING, SLIDING, FULL],
            },
        ),
        (
            "starcoder2",
            {".attention.layer_norm_epsilon": 1e-5},
            {
                "model_type": "starcoder2",
                "architectures": ["Starcoder2ForCausalLM"],
                "hidden_act": "gelu_pytorch_tanh",
                "norm_epsilon": 1e-5,
                "use_bias": False,
                "sliding_window": None,
            },
        ),
    ],
)
def test_a_decoder_family_has_its_config(translate, architecture, metadata, expected):
    assert translate(architecture, COMMON | metadata) == COMMON_HF | expected


def test_gemma_3_270m_has_the_config_it_was_published_with(translate):
    metadata = {
        ".context_length": 32768,
        ".embedding_length": 640,
        ".block_count": 18,
        ".feed_forward_length": 2048,
        ".attention.head_count": 4,
        ".attention.head_count_kv": 1,
        ".attention.layer_norm_rms_epsilon": 1e-6,
        ".attention.key_length": 256,
        ".attention.value_length": 256,
        ".rope.freq_base": 1000000.0,
        ".attention.sliding_window": 512,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 0,
    }
    layers = [f"blk.{layer}.attn_q.weight" for layer in range(18)]
    assert translate("gemma3", metadata, layers) == {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "vocab_size": 10,
        "hidden_size": 640,
        "intermediate_size": 2048,
        "num_hidden_layers": 18,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "query_pre_attn_scalar": 256,
        "sliding_window": 512,
        "layer_types": ([SLIDING] * 5 + [FULL]) * 3,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }


def test_gpt_neox_has_its_config(translate):
    metadata = COMMON | {
        ".attention.layer_norm_epsilon": 1e-5,
        ".rope.dimension_count": 4,
        ".use_parallel_residual": False,
    }
    assert translate("gptneox", metadata, ["output.weight"]) == {
        "model_type": "gpt_neox",
        "architectures": ["GPTNeoXForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 2048,
        "layer_norm_eps": 1e-5,
        "use_parallel_residual": False,
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000.0,
        "hidden_act": "gelu",
        "attention_bias": True,
        "vocab_size": 10,
        "tie_word_embeddings": False,
    }


def test_gpt2_has_its_config(translate):
    assert translate("gpt2", COMMON | {".attention.layer_norm_epsilon": 1e-5}) == {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": 64,
        "n_inner": 128,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 2048,
        "n_ctx": 2048,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
        "vocab_size": 10,
        "tie_word_embeddings": True,
    }


def test_an_end_of_turn_is_an_end_of_sequence_too(translate):
    ids = {"tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.eot_token_id": 9}
    assert translate("llama", COMMON | ids)["eos_token_id"] == [1, 9]
    ids["tokenizer.ggml.eot_token_id"] = 1
    assert translate("llama", COMMON | ids)["eos_token_id"] == 1


def test_biases_are_told_by_their_tensors(translate):
    config = translate("llama", COMMON, ["blk.0.attn_q.bias", "blk.0.ffn_up.bias"])
    assert (config["attention_bias"], config["mlp_bias"]) == (True, True)


def test_a_number_a_layer_is_one_number_if_all_are_equal(translate):
    lists = {".attention.head_count_kv": [2, 2, 2], ".feed_forward_length": [7, 7, 7]}
    config = translate("llama", COMMON | lists)
    assert (config["num_key_value_heads"], config["intermediate_size"]) == (2, 7)
    with pytest.raises(
        CorruptCheckpoint, match=r"llama\.feed_forward_length is .*the same for all"
    ):
        translate("llama", COMMON | {".feed_forward_length": [7, 8, 7]})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (".attention.head_count", 0),
        (".attention.head_count", "four"),
        (".attention.head_count", 4.0),
        (".block_count", 4_000_000_000),
        (".block_count", 1000),
        (".embedding_length", True),
        (".attention.layer_norm_rms_epsilon", float("nan")),
        (".rope.freq_base", 0.0),
        (".rope.freq_base", float("inf")),
        ("tokenizer.ggml.eos_token_id", "two"),
    ],
)
def test_an_absurd_value_is_refused_by_its_key(translate, key, value):
    full = f"llama{key}" if key.startswith(".") else key
    with pytest.raises(CorruptCheckpoint, match=full):
        translate("llama", COMMON | {key: value})


def test_a_missing_key_is_named(translate):
    metadata = {key: value for key, value in COMMON.items() if key != ".embedding_length"}
    with pytest.raises(CorruptCheckpoint, match=r"llama\.embedding_length is None"):
        translate("llama", metadata)


def test_what_has_no_translation_is_refused_with_what_has(translate):
    with pytest.raises(Unsupported, match=r"'rwkv7' is not translated; known: .*llama"):
        translate("rwkv7", COMMON)
    with pytest.raises(Unsupported, match="mixtures of experts"):
        translate("llama", COMMON | {".expert_count": 8})
