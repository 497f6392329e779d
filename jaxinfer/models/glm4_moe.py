"""GLM 4.5, 4.6 (arXiv 2508.06471): DeepSeek-V3's experts behind grouped-query attention."""

from collections.abc import Iterator
from dataclasses import replace

from jaxinfer.config import LayerSpec, ModelConfig, MoeSpec
from jaxinfer.models.hf_config import MAX_LAYERS, HfConfig
from jaxinfer.models.hf_experts import (
    BALANCING_FIELDS,
    MAX_EXPERTS,
    expert_mlp,
    expert_weights,
    in_groups,
    router,
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
    num_dense = _num_dense(fields)
    layers = with_experts(layers, _experts(fields), lambda i: i >= num_dense)
    return decoder(fields, layers=layers, final_norm=norms)


def _experts(fields: HfConfig) -> MoeSpec:
    chosen = router(
        fields,
        "n_routed_experts",
        "num_local_experts",
        scores="sigmoid",
        correction=True,
        renormalize=fields.flag("norm_topk_prob", True),
        scale=fields.positive("routed_scaling_factor", 1.0),
    )
    expert = expert_mlp(fields, "moe_intermediate_size")
    # Several shared experts side by side are one of their width together.
    num_shared = fields.size("n_shared_experts", 1, most=MAX_EXPERTS)
    shared = replace(expert, width=num_shared * expert.width)
    return MoeSpec(router=in_groups(fields, chosen), expert=expert, shared=shared)


def _num_dense(fields: HfConfig) -> int:
    """How many layers come before the first one with experts."""
    first = fields.get("first_k_dense_replace", 1)
    if not isinstance(first, int) or isinstance(first, bool) or not 0 <= first <= MAX_LAYERS:
        raise fields.error("first_k_dense_replace", first, "a whole number, 0 or more")
    return first


def _weights(config: ModelConfig) -> Iterator[WeightRule]:
    yield from weights(config)
    yield from expert_weights(config, shared="shared_experts")


GLM4_MOE = Family(
    name="glm4_moe",
    model_types=("glm4_moe",),
    read=_read,
    weights=_weights,
    defaults={"n_routed_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 1408},
    # Layers that predict further tokens at once: none of the decoder's.
    ignored_fields=BALANCING_FIELDS | {"num_nextn_predict_layers", "num_mtp_layers"},
    ignored_tensors=(*IGNORED_TENSORS, r"model\.layers\.(46|92)\..*"),
)
