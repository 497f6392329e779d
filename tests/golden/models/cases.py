"""The tiny models that transformers is asked about: what each of them differs in from ``SHAPE``."""

from typing import Any

SHAPE = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEAD_16 = {"head_dim": 16}
TWO_LAYERS = {"num_hidden_layers": 2}
HYBRID = {
    **TWO_LAYERS,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"],
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.5, 2.5, 4.0],
}

#: The layer types of a Gemma whose last two layers read the keys and values of earlier ones.
GEMMA3N = {
    "num_hidden_layers": 5,
    "sliding_window": 16,
    "layer_types": [
        "sliding_attention",
        "sliding_attention",
        "full_attention",
        "sliding_attention",
        "full_attention",
    ],
    "num_kv_shared_layers": 2,
    "laurel_rank": 8,
    "hidden_size_per_layer_input": 16,
    "vocab_size_per_layer_input": 128,
}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
}
DEEPSEEK_MOE = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 1,
    "moe_intermediate_size": 24,
}
#: The half of a multimodal model that nothing is asked of.
VISION = {
    "model_type": "pixtral",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "head_dim": 8,
    "image_size": 32,
    "patch_size": 16,
}


def rope(**parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10000.0, **parameters}}


#: model_type, what differs from SHAPE (a multimodal model says all of its text), and beside the
#: config: ``max_len``, the context the rope is made for, where it is not the config's own;
#: ``lengths`` of the two prompts; ``added`` tensors of the checkpoint.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": True}, {}),
    "llama_biases": (
        "llama",
        {**HEAD_16, "num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
        {},
    ),
    "llama_mqa": ("llama", {**HEAD_16, "num_key_value_heads": 1}, {}),
    "llama_linear": ("llama", {**HEAD_16, **rope(rope_type="linear", factor=4.0)}, {}),
    # Hugging Face stretches with the longest sequence so far; ours for the longest it may meet.
    "llama_dynamic": (
        "llama",
        {**HEAD_16, "max_position_embeddings": 16, **rope(rope_type="dynamic", factor=4.0)},
        {"max_len": 56, "lengths": (20, 40)},
    ),
    "llama_llama3": ("llama", {**HEAD_16, **rope(**LLAMA3)}, {}),
    "llama_yarn": ("llama", {**HEAD_16, **rope(**YARN)}, {}),
    "llama_yarn_mscale": (
        "llama",
        {
            **HEAD_16,
            **rope(**YARN, mscale=1.0, mscale_all_dim=0.7, beta_fast=8.0, truncate=False),
        },
        {},
    ),
    "smollm3": ("smollm3", {"num_hidden_layers": 4}, {}),
    "mistral": ("mistral", {**HEAD_16, "sliding_window": 16}, {}),
    "qwen2": ("qwen2", {}, {}),
    "qwen2_windows": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
        {},
    ),
    "qwen3": ("qwen3", HEAD_16, {}),
    "gemma": ("gemma", {**HEAD_16, "num_key_value_heads": 1}, {}),
    "gemma2": (
        "gemma2",
        {**HEAD_16, "sliding_window": 16, "query_pre_attn_scalar": 24, "num_hidden_layers": 4},
        {},
    ),
    "gemma3": (
        "gemma3_text",
        {
            **HEAD_16,
            "sliding_window": 16,
            "query_pre_attn_scalar": 24,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        {},
    ),
    "gemma3n": (
        "gemma3n_text",
        {
            **HEAD_16,
            **GEMMA3N,
            "intermediate_size": [80, 64, 64, 64, 48],
            "activation_sparsity_pattern": [0.9, 0.5, 0.0, 0.5, 0.0],
        },
        {},
    ),
    # Another active stream, nothing shared, softcap small enough to bend.
    "gemma3n_active": (
        "gemma3n_text",
        {
            **HEAD_16,
            **GEMMA3N,
            "num_hidden_layers": 2,
            "layer_types": ["sliding_attention", "full_attention"],
            "num_kv_shared_layers": 0,
            "altup_num_inputs": 3,
            "altup_active_idx": 1,
            "altup_correct_scale": False,
            "final_logit_softcapping": 5.0,
        },
        {},
    ),
    "gemma4": (
        "gemma4_text",
        {
            **HEAD_16,
            "num_hidden_layers": 5,
            "global_head_dim": 24,
            "sliding_window": 16,
            "layer_types": GEMMA3N["layer_types"],
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": 128,
            "final_logit_softcapping": 5.0,
        },
        {},
    ),
    "gemma4_moe": (
        "gemma4_text",
        {
            **HEAD_16,
            "num_hidden_layers": 2,
            "global_head_dim": 32,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
            "hidden_size_per_layer_input": 0,
            "tie_word_embeddings": False,
            "enable_moe_block": True,
            "num_experts": 6,
            "top_k_experts": 3,
            "moe_intermediate_size": 24,
        },
        {},
    ),
    "phi3": ("phi3", {"num_key_value_heads": 4, "sliding_window": 16}, {}),
    "phi3_longrope_short": (
        "phi3",
        {
            **rope(**LONGROPE, partial_rotary_factor=0.5),
            "max_position_embeddings": 256,
            "original_max_position_embeddings": 64,
        },
        {"max_len": 64},
    ),
    "phi3_longrope_long": (
        "phi3",
        {
            **rope(**LONGROPE, partial_rotary_factor=0.5),
            "original_max_position_embeddings": 16,
        },
        {"lengths": (20, 40)},
    ),
    "olmo2": ("olmo2", {}, {}),
    "olmo3": (
        "olmo3",
        {
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_theta": 10000.0, **YARN},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
        {},
    ),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 2.0,
            "attention_multiplier": 0.125,
            "residual_multiplier": 0.6,
            "logits_scaling": 0.5,
            "tie_word_embeddings": True,
        },
        {},
    ),
    "starcoder2": ("starcoder2", {"sliding_window": 16}, {}),
    "gpt_neox": ("gpt_neox", {"hidden_size": 64}, {}),
    "gpt_neox_sequential": (
        "gpt_neox",
        {"hidden_size": 64, "use_parallel_residual": False, **rope(partial_rotary_factor=0.5)},
        {},
    ),
    "gpt2": ("gpt2", {}, {}),
    "mixtral": ("mixtral", {**HEAD_16, "num_local_experts": 4, "sliding_window": 16}, {}),
    "qwen3_moe": (
        "qwen3_moe",
        {
            **HEAD_16,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
        },
        {},
    ),
    "qwen2_moe": (
        "qwen2_moe",
        {
            "num_experts": 6,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
            "decoder_sparse_step": 2,
            "num_hidden_layers": 4,
        },
        {},
    ),
    "qwen2_moe_windows": (
        "qwen2_moe",
        {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
            "norm_topk_prob": True,
            "use_sliding_window": True,
            "sliding_window": 16,
            "max_window_layers": 2,
        },
        {},
    ),
    "olmo": ("olmo", {**TWO_LAYERS, "clip_qkv": 1.0}, {}),
    "olmoe": (
        "olmoe",
        {
            "num_experts": 8,
            "num_experts_per_tok": 4,
            "intermediate_size": 24,
            "clip_qkv": 1.0,
        },
        {},
    ),
    "granitemoe": (
        "granitemoe",
        {
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "intermediate_size": 32,
            "embedding_multiplier": 2.0,
            "attention_multiplier": 0.125,
            "residual_multiplier": 0.6,
            "logits_scaling": 0.5,
            "tie_word_embeddings": True,
        },
        {},
    ),
    # So much jitter that some experts are far off and some are not.
    "phimoe": (
        "phimoe",
        {
            "num_local_experts": 6,
            "intermediate_size": 32,
            "router_jitter_noise": 0.3,
            "sliding_window": 16,
            "attention_bias": True,
            "lm_head_bias": True,
        },
        {},
    ),
    # transformers takes the short factors always, and the long mscale where it is long.
    "phimoe_longrope_short": (
        "phimoe",
        {
            "num_local_experts": 4,
            "intermediate_size": 32,
            **rope(
                rope_type="longrope",
                short_factor=[1.0, 1.1, 1.3, 1.5, 1.7, 2.0],
                long_factor=[1.5, 2.0, 2.5, 3.0, 4.0, 5.0],
                short_mscale=1.1,
                long_mscale=1.25,
                original_max_position_embeddings=64,
            ),
            "max_position_embeddings": 256,
        },
        {"max_len": 64},
    ),
    "glm4_moe": (
        "glm4_moe",
        {
            **HEAD_16,
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "n_shared_experts": 2,
            "moe_intermediate_size": 24,
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 1.5,
            "use_qk_norm": True,
            "attention_bias": True,
        },
        {},
    ),
    "cohere": (
        "cohere",
        {**TWO_LAYERS, "use_qk_norm": True, "attention_bias": True, "logit_scale": 0.5},
        {},
    ),
    "cohere2": ("cohere2", {**HYBRID, "logit_scale": 0.5}, {}),
    "glm": ("glm", {**HEAD_16, **TWO_LAYERS}, {}),
    "glm4": ("glm4", {**HEAD_16, **TWO_LAYERS, "attention_bias": False}, {}),
    "exaone4": ("exaone4", {**HYBRID, "sliding_window_pattern": 2}, {}),
    "exaone4_full": (
        "exaone4",
        {**TWO_LAYERS, "sliding_window": None, "layer_types": ["full_attention"] * 2},
        {},
    ),
    "stablelm": ("stablelm", {**TWO_LAYERS, "hidden_size": 64, "use_qkv_bias": True}, {}),
    "stablelm_parallel": (
        "stablelm",
        {
            **TWO_LAYERS,
            "hidden_size": 64,
            "use_parallel_residual": True,
            "qk_layernorm": True,
        },
        {},
    ),
    "nemotron": (
        "nemotron",
        {**HEAD_16, **TWO_LAYERS, "attention_bias": True, "mlp_bias": True},
        {},
    ),
    "arcee": ("arcee", TWO_LAYERS, {}),
    "ministral": ("ministral", {**HEAD_16, **HYBRID}, {}),
    "ministral3": (
        "ministral3",
        {
            **HEAD_16,
            **TWO_LAYERS,
            **rope(**YARN, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.5),
        },
        {},
    ),
    "hunyuan": (
        "hunyuan_v1_dense",
        {**HEAD_16, **TWO_LAYERS, **rope(rope_type="dynamic", factor=1.0, alpha=50.0)},
        {},
    ),
    "seed_oss": ("seed_oss", {**HEAD_16, **TWO_LAYERS, "attention_out_bias": True}, {}),
    "ernie4_5": ("ernie4_5", {**HEAD_16, **TWO_LAYERS, "use_bias": True}, {}),
    "helium": ("helium", {**HEAD_16, **TWO_LAYERS, "hidden_size": 64}, {}),
    "phi": ("phi", {**TWO_LAYERS, "hidden_size": 64, "qk_layernorm": True}, {}),
    "cwm": ("cwm", {**HEAD_16, **HYBRID, **rope(**LLAMA3)}, {}),
    "vaultgemma": (
        "vaultgemma",
        {**HEAD_16, **HYBRID, "query_pre_attn_scalar": 24},
        {},
    ),
    # The rope is stretched beyond its original length, with a ramp whose ends are not rounded.
    "gpt_oss": (
        "gpt_oss",
        {
            **HEAD_16,
            "num_local_experts": 6,
            "num_experts_per_tok": 3,
            "intermediate_size": 32,
            "sliding_window": 16,
            **rope(**YARN, beta_fast=8.0, truncate=False),
        },
        {},
    ),
    # So low a limit that many a gate and many an up is beyond it.
    "gpt_oss_limit": (
        "gpt_oss",
        {
            **HEAD_16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 32,
            "sliding_window": 16,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
            "attention_bias": False,
            "swiglu_limit": 0.75,
            "swiglu_alpha": 1.3,
        },
        {},
    ),
    # Two layers with experts, one of them without rope; temperatures rise every eight tokens.
    "llama4": (
        "llama4_text",
        {
            **HEAD_16,
            "num_hidden_layers": 4,
            "intermediate_size": 24,
            "intermediate_size_mlp": 40,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "interleave_moe_layer_step": 2,
            "no_rope_layers": [1, 1, 1, 0],
            "attention_chunk_size": 16,
            "floor_scale": 8,
            "attn_scale": 0.5,
            **rope(**(LLAMA3 | {"high_freq_factor": 1.0})),
        },
        {},
    ),
    "llama4_plain": (
        "llama4_text",
        {
            **HEAD_16,
            **TWO_LAYERS,
            "intermediate_size": 24,
            "intermediate_size_mlp": 40,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "moe_layers": [0],
            "no_rope_layers": [0, 1],
            "use_qk_norm": False,
            "attn_temperature_tuning": False,
            "attention_bias": True,
        },
        {},
    ),
    "ernie4_5_moe": (
        "ernie4_5_moe",
        {
            "moe_num_experts": 6,
            "moe_k": 3,
            "moe_intermediate_size": 24,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1,
            "moe_layer_end_index": 1,
            "tie_word_embeddings": False,
        },
        {},
    ),
    "deepseek_v2": (
        "deepseek_v2",
        {
            **LATENT,
            **DEEPSEEK_MOE,
            "q_lora_rank": None,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
            "attention_bias": True,
            "mlp_bias": True,
        },
        {},
    ),
    "deepseek_v2_groups": (
        "deepseek_v2",
        {
            **LATENT,
            **DEEPSEEK_MOE,
            "q_lora_rank": 24,
            "topk_method": "group_limited_greedy",
            "n_group": 4,
            "topk_group": 2,
            "routed_scaling_factor": 4.0,
            **rope(**YARN, mscale=0.707, mscale_all_dim=0.707),
        },
        {},
    ),
    "deepseek_v3": (
        "deepseek_v3",
        {
            **LATENT,
            **DEEPSEEK_MOE,
            "q_lora_rank": 24,
            "n_group": 4,
            "topk_group": 2,
            "first_k_dense_replace": 1,
            "attention_bias": True,
            **rope(**YARN, mscale=1.0, mscale_all_dim=1.0),
        },
        {},
    ),
    "deepseek_v3_halves": (
        "deepseek_v3",
        {
            **LATENT,
            **DEEPSEEK_MOE,
            "num_hidden_layers": 2,
            "q_lora_rank": None,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "norm_topk_prob": False,
            "rope_interleave": False,
        },
        {},
    ),
    "minicpm3": (
        "minicpm3",
        {**LATENT, "q_lora_rank": 24, "v_head_dim": None, "dim_model_base": 24, "scale_emb": 2},
        {},
    ),
    "gpt2_layer_scale": ("gpt2", {"scale_attn_by_inverse_layer_idx": True, "n_inner": 96}, {}),
    # What transformers writes by itself: the whole is tied, its text says it is not, and no tensor
    # is a head.
    "mistral3": (
        "mistral3",
        {
            "text_config": {
                **SHAPE,
                **HEAD_16,
                **TWO_LAYERS,
                "model_type": "ministral3",
                **rope(**YARN, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.5),
            },
            "vision_config": VISION,
        },
        {},
    ),
    # A config that ties what the checkpoint has twice, with different numbers.
    "mixtral_two_heads": (
        "mixtral",
        {**HEAD_16, **TWO_LAYERS, "num_local_experts": 4, "tie_word_embeddings": True},
        {"added": {"lm_head.weight": (128, 48)}},
    ),
    # From here on: fields that change what is computed, and that no case above changes.
    "qwen3_moe_windows": (
        "qwen3_moe",
        {
            **HEAD_16,
            **TWO_LAYERS,
            "num_experts": 6,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 16,
            "decoder_sparse_step": 2,
        },
        {},
    ),
    "olmoe_norm": (
        "olmoe",
        {
            **TWO_LAYERS,
            "num_experts": 8,
            "num_experts_per_tok": 4,
            "intermediate_size": 24,
            "norm_topk_prob": True,
            "attention_bias": True,
        },
        {},
    ),
    "granitemoe_bias": (
        "granitemoe",
        {
            **TWO_LAYERS,
            "num_local_experts": 5,
            "num_experts_per_tok": 3,
            "intermediate_size": 32,
            "attention_bias": True,
        },
        {},
    ),
    "glm4_moe_plain": (
        "glm4_moe",
        {
            **HEAD_16,
            **TWO_LAYERS,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "norm_topk_prob": False,
            "first_k_dense_replace": 0,
        },
        {},
    ),
    "ernie4_5_moe_interval": (
        "ernie4_5_moe",
        {
            "num_hidden_layers": 4,
            "moe_num_experts": 6,
            "moe_k": 3,
            "moe_intermediate_size": 24,
            "moe_num_shared_experts": 0,
            "moe_layer_interval": 2,
            "moe_layer_start_index": 0,
        },
        {},
    ),
    "cohere2_bias": (
        "cohere2",
        {**HYBRID, "attention_bias": True, "tie_word_embeddings": False},
        {},
    ),
    "deepseek_v2_mscale": (
        "deepseek_v2",
        {**LATENT, **DEEPSEEK_MOE, **TWO_LAYERS, "q_lora_rank": 24, **rope(**YARN, mscale=0.7)},
        {},
    ),
    "deepseek_v2_mscale_all": (
        "deepseek_v2",
        {
            **LATENT,
            **DEEPSEEK_MOE,
            **TWO_LAYERS,
            "q_lora_rank": 24,
            "routed_scaling_factor": 2.0,
            "tie_word_embeddings": True,
            **rope(**YARN, mscale_all_dim=0.7),
        },
        {},
    ),
    "deepseek_v3_factor": (
        "deepseek_v3",
        {
            **LATENT,
            **DEEPSEEK_MOE,
            **TWO_LAYERS,
            "q_lora_rank": None,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 0,
            "n_shared_experts": 2,
            **rope(**YARN, attention_factor=1.3, mscale_all_dim=1.0),
        },
        {},
    ),
    # As in Kimi K2, which is a DeepSeek V3 by another name.
    "deepseek_v3_equal_betas": (
        "deepseek_v3",
        {
            **LATENT,
            **DEEPSEEK_MOE,
            **TWO_LAYERS,
            "q_lora_rank": 24,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            **rope(**YARN, mscale=1.0, mscale_all_dim=1.0, beta_fast=1.0, beta_slow=1.0),
        },
        {},
    ),
    "minicpm3_longrope": (
        "minicpm3",
        {
            **LATENT,
            **TWO_LAYERS,
            "q_lora_rank": 24,
            "dim_model_base": 24,
            "scale_emb": 2,
            **rope(
                rope_type="longrope",
                factor=4.0,
                short_factor=[1.0, 1.1, 1.3, 1.5],
                long_factor=[1.5, 2.0, 2.5, 3.0],
                original_max_position_embeddings=16,
            ),
        },
        {"lengths": (20, 40)},
    ),
    "minicpm3_yarn": (
        "minicpm3",
        {
            **LATENT,
            **TWO_LAYERS,
            "q_lora_rank": 24,
            "dim_model_base": 24,
            "scale_emb": 2,
            **rope(**YARN, mscale=1.0, mscale_all_dim=0.8),
        },
        {},
    ),
    "minicpm3_bias": (
        "minicpm3",
        {
            **LATENT,
            **TWO_LAYERS,
            "q_lora_rank": None,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
        },
        {},
    ),
    # Experts beside inputs of each layer, and biases.
    "gemma4_all": (
        "gemma4_text",
        {
            **HEAD_16,
            **HYBRID,
            "global_head_dim": 24,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": 128,
            "attention_bias": True,
            "enable_moe_block": True,
            "num_experts": 6,
            "top_k_experts": 2,
            "moe_intermediate_size": 24,
        },
        {},
    ),
    # Values that are keys, read by another layer; its MLP is as wide as those of the others.
    "gemma4_shared_keys": (
        "gemma4_text",
        {
            **HEAD_16,
            "num_hidden_layers": 5,
            "global_head_dim": 16,
            "layer_types": GEMMA3N["layer_types"],
            "sliding_window": 16,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "num_kv_shared_layers": 2,
            "hidden_size_per_layer_input": 0,
        },
        {},
    ),
}
