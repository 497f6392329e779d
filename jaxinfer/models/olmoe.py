"""OLMoE (arXiv 2409.02060): many small experts; q and k normed over all heads."""

from jaxinfer.config import LayerSpec, ModelConfig, MoeSpec
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_experts import BALANCING_FIELDS, expert_mlp, router
from jaxinfer.models.hf_rope import rope
from jaxinfer.models.hf_specs import attention, decoder, head_dim, num_layers, rms_norm
from jaxinfer.models.llama import IGNORED_TENSORS
from jaxinfer.models.qwen3_moe import qwen_moe_weights
from jaxinfer.models.weights import Family


def _read(fields: HfConfig) -> ModelConfig:
    dim, bias = head_dim(fields), fields.flag("attention_bias", False)
    norms = rms_norm(fields, eps=1e-5)
    mixer = attention(
        fields,
        dim,
        rope=rope(fields, dim),
        qk_norm=norms,
        qk_norm_over="all",
        qkv_clip=fields.optional_positive("clip_qkv"),
        qkv_bias=bias,
        out_bias=bias,
    )
    moe = MoeSpec(
        router=router(
            fields,
            "num_experts",
            "num_local_experts",
            renormalize=fields.flag("norm_topk_prob", False),
        ),
        expert=expert_mlp(fields),
    )
    layer = LayerSpec(mixer=mixer, mlp=moe, pre_norm=norms)
    return decoder(fields, layers=(layer,) * num_layers(fields), final_norm=norms)


OLMOE = Family(
    name="olmoe",
    model_types=("olmoe",),
    read=_read,
    weights=qwen_moe_weights,
    defaults={"num_experts": 64, "num_experts_per_tok": 8},
    ignored_fields=BALANCING_FIELDS,
    ignored_tensors=IGNORED_TENSORS,
)
