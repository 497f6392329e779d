"""Qwen 3 30B-A3B, 235B-A22B (arXiv 2505.09388): Qwen 3 with experts, none of them shared."""

from collections.abc import Iterator
from dataclasses import replace

from jaxinfer.config import LayerSpec, ModelConfig, MoeSpec
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_experts import (
    BALANCING_FIELDS,
    expert_mlp,
    expert_weights,
    is_sparse,
    router,
    with_experts,
)
from jaxinfer.models.hf_rope import rope
from jaxinfer.models.hf_specs import (
    attention,
    decoder,
    head_dim,
    num_layers,
    rms_norm,
    sliding_window,
)
from jaxinfer.models.llama import IGNORED_TENSORS, gated_mlp, weights
from jaxinfer.models.qwen2 import WINDOW_DEFAULTS, WINDOW_FIELDS
from jaxinfer.models.weights import Family, WeightRule


def _read(fields: HfConfig) -> ModelConfig:
    dim, bias = head_dim(fields), fields.flag("attention_bias", False)
    norm = rms_norm(fields)
    mixer = attention(
        fields, dim, rope=rope(fields, dim), qk_norm=norm, qkv_bias=bias, out_bias=bias
    )
    # Unlike those of Qwen 3, all layers have the window.
    if fields.flag("use_sliding_window", False):
        mixer = replace(mixer, window=sliding_window(fields))
    layer = LayerSpec(mixer=mixer, mlp=gated_mlp(fields), pre_norm=norm)
    moe = MoeSpec(
        router=router(
            fields,
            "num_experts",
            "num_local_experts",
            renormalize=fields.flag("norm_topk_prob", False),
        ),
        expert=expert_mlp(fields, "moe_intermediate_size"),
    )
    layers = with_experts((layer,) * num_layers(fields), moe, is_sparse(fields))
    return decoder(fields, layers=layers, final_norm=norm)


def qwen_moe_weights(config: ModelConfig) -> Iterator[WeightRule]:
    """Llama's rules, and those of experts beside them."""
    yield from weights(config)
    yield from expert_weights(config)


QWEN3_MOE = Family(
    name="qwen3_moe",
    model_types=("qwen3_moe",),
    read=_read,
    weights=qwen_moe_weights,
    defaults={
        "num_key_value_heads": 4,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        **WINDOW_DEFAULTS,
    },
    ignored_fields=WINDOW_FIELDS | BALANCING_FIELDS,
    ignored_tensors=IGNORED_TENSORS,
)
