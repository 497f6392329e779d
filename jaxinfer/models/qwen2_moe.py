"""Qwen 1.5 MoE, Qwen 2 57B-A14B (arXiv 2407.10671): experts beside one that all tokens share."""

from jaxinfer.config import LayerSpec, ModelConfig, MoeSpec
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_experts import (
    BALANCING_FIELDS,
    expert_mlp,
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
    windowed,
)
from jaxinfer.models.llama import IGNORED_TENSORS, gated_mlp
from jaxinfer.models.qwen2 import WINDOW_DEFAULTS, WINDOW_FIELDS
from jaxinfer.models.qwen3_moe import qwen_moe_weights
from jaxinfer.models.weights import Family


def _read(fields: HfConfig) -> ModelConfig:
    dim, bias = head_dim(fields), fields.flag("qkv_bias", True)
    layer = LayerSpec(
        mixer=attention(fields, dim, rope=rope(fields, dim), qkv_bias=bias),
        mlp=gated_mlp(fields),
        pre_norm=rms_norm(fields),
    )
    moe = MoeSpec(
        router=router(fields, "num_experts", renormalize=fields.flag("norm_topk_prob", False)),
        expert=expert_mlp(fields, "moe_intermediate_size"),
        shared=expert_mlp(fields, "shared_expert_intermediate_size"),
        shared_gate=True,
    )
    layers = with_experts(_lower_layers_windowed(fields, layer), moe, is_sparse(fields))
    return decoder(fields, layers=layers, final_norm=rms_norm(fields))


def _lower_layers_windowed(fields: HfConfig, layer: LayerSpec) -> tuple[LayerSpec, ...]:
    """Every other layer below ``max_window_layers`` has the window, if ``use_sliding_window``."""
    count = num_layers(fields)
    if not fields.flag("use_sliding_window", False):
        return windowed(fields, layer, count, None, lambda i: False)
    end = fields.get("max_window_layers")
    if not isinstance(end, int) or isinstance(end, bool) or end < 0:
        raise fields.error("max_window_layers", end, "a whole number, 0 or more")
    window = sliding_window(fields)
    return windowed(fields, layer, count, window, lambda i: i < end and i % 2 == 0)


QWEN2_MOE = Family(
    name="qwen2_moe",
    model_types=("qwen2_moe",),
    read=_read,
    weights=qwen_moe_weights,
    defaults={
        "num_key_value_heads": 16,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        **WINDOW_DEFAULTS,
        "max_window_layers": 28,
    },
    ignored_fields=WINDOW_FIELDS | BALANCING_FIELDS,
    ignored_tensors=IGNORED_TENSORS,
)
