"""GLM 4.5, 4.6 (arXiv 2508.06471): DeepSeek-V3's experts behind grouped-query attention."""

from collections.abc import Iterator

from jaxinfer.config import LayerSpec, ModelConfig
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_experts import (
    BALANCING_FIELDS,
    deepseek_experts,
    expert_weights,
    num_dense,
    with_experts,
)
from jaxinfer.models.hf_rope import rope
from jaxinfer.models.hf_specs import attention, decoder, head_dim, num_layers, rms_norm
from jaxinfer.models.llama import IGNORED_TENSORS, gated_mlp, weights
from jaxinfer.models.weights import Family, WeightRule


def _read(fields: HfConfig) -> ModelConfig:
    dim, norms = head_dim(fields), rms_norm(fields, eps=1e-5)
    mixer = attention(
        fields,
        dim,
        rope=rope(fields, dim, rotary_share=0.5),
        qk_norm=norms if fields.flag("use_qk_norm", False) else None,
        qkv_bias=fields.flag("attention_bias", False),
    )
    layer = LayerSpec(mixer=mixer, mlp=gated_mlp(fields), pre_norm=norms)
    layers = (layer,) * num_layers(fields)
    first = num_dense(fields, 1)
    layers = with_experts(layers, deepseek_experts(fields), lambda i: i >= first)
    return decoder(fields, layers=layers, final_norm=norms)


def _weights(config: ModelConfig) -> Iterator[WeightRule]:
    yield from weights(config)
    yield from expert_weights(config, shared="shared_experts")


GLM4_MOE = Family(
    name="glm4_moe",
    model_types=("glm4_moe",),
    read=_read,
    weights=_weights,
    defaults={
        "num_key_value_heads": 8,
        "n_routed_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 1408,
    },
    # Layers that predict further tokens at once: none of the decoder's.
    ignored_fields=BALANCING_FIELDS | {"num_nextn_predict_layers", "num_mtp_layers"},
    ignored_tensors=(*IGNORED_TENSORS, r"model\.layers\.(46|92)\..*"),
)
