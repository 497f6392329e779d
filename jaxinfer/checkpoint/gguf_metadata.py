"""GGUF metadata as a Hugging Face ``config.json``: one small function a family.

The keys of llama.cpp are ``<architecture>.attention.head_count`` and the like. What its converter
leaves out because llama.cpp knows it by the architecture (activation, window pattern, layers
without rope) is added here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jaxinfer.checkpoint.gguf_keys import Keys
from jaxinfer.checkpoint.gguf_rope import rope_config
from jaxinfer.errors import Unsupported

_Config = dict[str, Any]


def hf_config(keys: Keys) -> _Config:
    """Translates the metadata of a GGUF file.

    Raises:
        Unsupported: an architecture that has no translation, or a mixture of experts.
        CorruptCheckpoint: a key that is missing, of a wrong type or absurd.
    """
    if keys.architecture not in _FAMILIES:
        raise Unsupported(
            f"{keys.path}: the GGUF architecture {keys.architecture!r} is not translated; "
            f"known: {', '.join(sorted(_FAMILIES))}"
        )
    if keys.count("expert_count", 0):
        raise Unsupported(f"{keys.path}: GGUF files of mixtures of experts are not translated")
    config = _FAMILIES[keys.architecture](keys)
    config["vocab_size"] = keys.tensor("token_embd.weight").shape[0]
    config["tie_word_embeddings"] = "output.weight" not in keys.tensors
    config.update(_token_ids(keys))
    return config


def _token_ids(keys: Keys) -> _Config:
    """bos, eos and pad; eos is a list where a turn ends with another token than a text."""
    ids = {name: keys.token_id(name) for name in ("bos", "eos", "padding", "eot", "eom")}
    ends = list(dict.fromkeys(ids[name] for name in ("eos", "eot", "eom") if ids[name] is not None))
    config = {
        "bos_token_id": ids["bos"],
        "eos_token_id": ends if len(ends) > 1 else next(iter(ends), None),
        "pad_token_id": ids["padding"],
    }
    return {name: value for name, value in config.items() if value is not None}


def _decoder(keys: Keys, model_type: str, class_name: str, **known: Any) -> _Config:
    """What every family with Llama's config keys has; ``known`` is added as it stands."""
    num_heads = keys.count("attention.head_count")
    config = {
        "model_type": model_type,
        "architectures": [class_name],
        "hidden_size": keys.count("embedding_length"),
        "intermediate_size": keys.count("feed_forward_length"),
        "num_hidden_layers": keys.num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": keys.count("attention.head_count_kv", num_heads),
        "max_position_embeddings": keys.count("context_length"),
    }
    if keys.has("attention.layer_norm_rms_epsilon"):
        config["rms_norm_eps"] = keys.number("attention.layer_norm_rms_epsilon")
    if keys.has("attention.key_length"):
        config["head_dim"] = keys.count("attention.key_length")
    return config | rope_config(keys) | known


def _biases(keys: Keys) -> _Config:
    return {
        "attention_bias": "blk.0.attn_q.bias" in keys.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in keys.tensors,
    }


def _layer_types(keys: Keys, is_sliding: Callable[[int], bool]) -> list[str]:
    return [
        "sliding_attention" if is_sliding(layer) else "full_attention"
        for layer in range(keys.num_layers)
    ]


def _llama(keys: Keys) -> _Config:
    if window := keys.count("attention.sliding_window", 0):
        known = {"hidden_act": "silu", "sliding_window": window}
        return _decoder(keys, "mistral", "MistralForCausalLM", **known)
    return _decoder(keys, "llama", "LlamaForCausalLM", hidden_act="silu", **_biases(keys))


def _smollm3(keys: Keys) -> _Config:
    interval = 4
    has_rope = [int((layer + 1) % interval != 0) for layer in range(keys.num_layers)]
    return _decoder(
        keys,
        "smollm3",
        "SmolLM3ForCausalLM",
        hidden_act="silu",
        no_rope_layer_interval=interval,
        no_rope_layers=has_rope,
        **_biases(keys),
    )


def _granite(keys: Keys) -> _Config:
    multipliers = {
        "attention.scale": "attention_multiplier",
        "embedding_scale": "embedding_multiplier",
        "residual_scale": "residual_multiplier",
        "logit_scale": "logits_scaling",
    }
    scales = {name: keys.number(key) for key, name in multipliers.items() if keys.has(key)}
    known = {"hidden_act": "silu", **_biases(keys), **scales}
    return _decoder(keys, "granite", "GraniteForCausalLM", **known)


def _qwen2(keys: Keys) -> _Config:
    return _decoder(keys, "qwen2", "Qwen2ForCausalLM", hidden_act="silu", use_sliding_window=False)


def _qwen3(keys: Keys) -> _Config:
    return _decoder(
        keys,
        "qwen3",
        "Qwen3ForCausalLM",
        hidden_act="silu",
        use_sliding_window=False,
        attention_bias="blk.0.attn_q.bias" in keys.tensors,
    )


def _gemma(keys: Keys) -> _Config:
    return _decoder(
        keys,
        "gemma",
        "GemmaForCausalLM",
        hidden_act="gelu_pytorch_tanh",
        hidden_activation="gelu_pytorch_tanh",
        attention_bias=False,
    )


#: The 27B models of Gemma 2 and 3, told by their layers, scale queries by width / heads, not by
#: head.
_GEMMA_27B_LAYERS = {"gemma2": 46, "gemma3": 62}


def _gemma_query_scalar(keys: Keys) -> int:
    if keys.num_layers == _GEMMA_27B_LAYERS[keys.architecture]:
        return keys.count("embedding_length") // keys.count("attention.head_count")
    return keys.count("attention.key_length")


def _gemma2(keys: Keys) -> _Config:
    return _decoder(
        keys,
        "gemma2",
        "Gemma2ForCausalLM",
        hidden_act="gelu_pytorch_tanh",
        hidden_activation="gelu_pytorch_tanh",
        attention_bias=False,
        query_pre_attn_scalar=_gemma_query_scalar(keys),
        sliding_window=keys.count("attention.sliding_window", 4096),
        layer_types=_layer_types(keys, lambda layer: layer % 2 == 0),
        attn_logit_softcapping=keys.number("attn_logit_softcapping", 50.0),
        final_logit_softcapping=keys.number("final_logit_softcapping", 30.0),
    )


def _gemma3(keys: Keys) -> _Config:
    window = keys.count("attention.sliding_window", 0) or None
    pattern = keys.count("attention.sliding_window_pattern", 6)
    final_softcap = "final_logit_softcapping"
    return _decoder(
        keys,
        "gemma3_text",
        "Gemma3ForCausalLM",
        hidden_activation="gelu_pytorch_tanh",
        attention_bias=False,
        query_pre_attn_scalar=_gemma_query_scalar(keys),
        sliding_window=window,
        layer_types=_layer_types(
            keys, lambda layer: window is not None and (layer + 1) % pattern != 0
        ),
        rope_local_base_freq=keys.number("rope.freq_base_swa", 10000.0),
        attn_logit_softcapping=None,
        final_logit_softcapping=keys.number(final_softcap) if keys.has(final_softcap) else None,
    )


def _phi3(keys: Keys) -> _Config:
    context = keys.count("context_length")
    return _decoder(
        keys,
        "phi3",
        "Phi3ForCausalLM",
        hidden_act="silu",
        sliding_window=keys.count("attention.sliding_window", 0) or None,
        original_max_position_embeddings=keys.count(
            "rope.scaling.original_context_length", context
        ),
    )


def _olmo2(keys: Keys) -> _Config:
    """OLMo 2, or OLMo 3, which llama.cpp tells from it by its sliding windows."""
    window = keys.count("attention.sliding_window", 0)
    if not window:
        known = {"hidden_act": "silu", "attention_bias": False}
        return _decoder(keys, "olmo2", "Olmo2ForCausalLM", **known)
    is_sliding = keys.flags("attention.sliding_window_pattern", keys.num_layers)
    return _decoder(
        keys,
        "olmo3",
        "Olmo3ForCausalLM",
        hidden_act="silu",
        attention_bias=False,
        sliding_window=window,
        layer_types=_layer_types(keys, lambda layer: is_sliding[layer]),
    )


def _starcoder2(keys: Keys) -> _Config:
    return _decoder(
        keys,
        "starcoder2",
        "Starcoder2ForCausalLM",
        hidden_act="gelu_pytorch_tanh",
        norm_epsilon=keys.number("attention.layer_norm_epsilon"),
        use_bias="blk.0.attn_q.bias" in keys.tensors,
        sliding_window=keys.count("attention.sliding_window", 0) or None,
    )


def _gpt_neox(keys: Keys) -> _Config:
    num_heads, width = keys.count("attention.head_count"), keys.count("embedding_length")
    rotary_dim = keys.count("rope.dimension_count")
    return {
        "model_type": "gpt_neox",
        "architectures": ["GPTNeoXForCausalLM"],
        "hidden_size": width,
        "intermediate_size": keys.count("feed_forward_length"),
        "num_hidden_layers": keys.num_layers,
        "num_attention_heads": num_heads,
        "max_position_embeddings": keys.count("context_length"),
        "layer_norm_eps": keys.number("attention.layer_norm_epsilon"),
        "use_parallel_residual": keys.flag("use_parallel_residual", True),
        "rotary_pct": rotary_dim * num_heads / width,
        "rotary_emb_base": keys.number("rope.freq_base", 10000.0),
        "hidden_act": "gelu",
        "attention_bias": True,
    }


def _gpt2(keys: Keys) -> _Config:
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": keys.count("embedding_length"),
        "n_inner": keys.count("feed_forward_length"),
        "n_layer": keys.num_layers,
        "n_head": keys.count("attention.head_count"),
        "n_positions": keys.count("context_length"),
        "n_ctx": keys.count("context_length"),
        "layer_norm_epsilon": keys.number("attention.layer_norm_epsilon"),
        "activation_function": "gelu_new",
    }


_FAMILIES: Mapping[str, Callable[[Keys], _Config]] = {
    "llama": _llama,
    "smollm3": _smollm3,
    "granite": _granite,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "olmo2": _olmo2,
    "starcoder2": _starcoder2,
    "gptneox": _gpt_neox,
    "gpt2": _gpt2,
}
