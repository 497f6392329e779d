"""OLMo 1 (arXiv 2402.00838): Llama with norms that learn nothing, and q, k, v kept in bounds."""

from jaxinfer.config import ModelConfig, NormSpec
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_rope import rope
from jaxinfer.models.hf_specs import attention, head_dim
from jaxinfer.models.llama import IGNORED_TENSORS, gated_mlp, pre_norm_decoder, weights
from jaxinfer.models.weights import Family


def _read(fields: HfConfig) -> ModelConfig:
    dim, bias = head_dim(fields), fields.flag("attention_bias", False)
    mixer = attention(
        fields,
        dim,
        rope=rope(fields, dim),
        qkv_clip=fields.optional_positive("clip_qkv"),
        qkv_bias=bias,
        out_bias=bias,
    )
    norms = NormSpec(kind="layer", eps=1e-5, weight=False)
    return pre_norm_decoder(fields, mixer, gated_mlp(fields), norms)


OLMO = Family(
    name="olmo",
    model_types=("olmo",),
    read=_read,
    weights=weights,
    ignored_tensors=IGNORED_TENSORS,
)
