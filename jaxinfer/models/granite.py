"""Granite 3 dense: Llama with multipliers on embeddings, attention, branches, logits."""

from jaxinfer.config import LayerSpec, MlpSpec, ModelConfig, MoeSpec
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_rope import rope
from jaxinfer.models.hf_specs import attention, decoder, head_dim, num_layers, rms_norm
from jaxinfer.models.llama import IGNORED_TENSORS, gated_mlp, weights
from jaxinfer.models.weights import Family


def _read(fields: HfConfig) -> ModelConfig:
    return granite_decoder(fields, gated_mlp(fields, bias=fields.flag("mlp_bias", False)))


def granite_decoder(fields: HfConfig, mlp: MlpSpec | MoeSpec) -> ModelConfig:
    """A stack of Granite's blocks around this ``mlp``."""
    dim, bias = head_dim(fields), fields.flag("attention_bias", False)
    mixer = attention(
        fields,
        dim,
        scale=fields.positive("attention_multiplier", 1.0),
        rope=rope(fields, dim),
        qkv_bias=bias,
        out_bias=bias,
    )
    layer = LayerSpec(
        mixer=mixer,
        mlp=mlp,
        pre_norm=rms_norm(fields),
        residual_scale=fields.positive("residual_multiplier", 1.0),
    )
    return decoder(
        fields,
        layers=(layer,) * num_layers(fields),
        final_norm=rms_norm(fields),
        embed_scale=fields.positive("embedding_multiplier", 1.0),
        logit_scale=1.0 / fields.positive("logits_scaling", 1.0),
    )


GRANITE = Family(
    name="granite",
    model_types=("granite",),
    read=_read,
    weights=weights,
    ignored_tensors=IGNORED_TENSORS,
)
