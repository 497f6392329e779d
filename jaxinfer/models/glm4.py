"""GLM 4 9B (arXiv 2406.12793), and GLM 4 of 2025, which adds norms after the branches."""

from collections.abc import Iterator

from jaxinfer.config import LayerSpec, ModelConfig
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_rope import rope
from jaxinfer.models.hf_specs import attention, decoder, head_dim, num_layers, rms_norm
from jaxinfer.models.llama import (
    IGNORED_TENSORS,
    LAYER,
    gated_mlp,
    outer_weights,
    projection_weights,
)
from jaxinfer.models.phi3 import fused_mlp_weights
from jaxinfer.models.weights import Family, WeightRule, norm

_DEFAULTS = {
    "head_dim": 128,
    "num_key_value_heads": 2,
    "attention_bias": True,
    "rms_norm_eps": 1.5625e-7,
}


def _read_glm(fields: HfConfig) -> ModelConfig:
    return _read(fields, has_post_norms=False)


def _read_glm4(fields: HfConfig) -> ModelConfig:
    return _read(fields, has_post_norms=True)


def _read(fields: HfConfig, *, has_post_norms: bool) -> ModelConfig:
    dim, norms = head_dim(fields), rms_norm(fields)
    mixer = attention(
        fields,
        dim,
        rope=rope(fields, dim, rotary_share=0.5, interleaved=True),
        qkv_bias=fields.flag("attention_bias", True),
    )
    layer = LayerSpec(
        mixer=mixer,
        mlp=gated_mlp(fields),
        pre_norm=norms,
        post_norm=norms if has_post_norms else None,
    )
    return decoder(fields, layers=(layer,) * num_layers(fields), final_norm=norms)


def _weights(config: ModelConfig) -> Iterator[WeightRule]:
    layer = config.layers[0]
    yield from outer_weights(config)
    yield from norm("layers.{i}.mixer_norm", LAYER + "input_layernorm", layer.pre_norm)
    yield from projection_weights(config)
    post_attention = LAYER + "post_self_attn_layernorm"
    yield from norm("layers.{i}.mixer_post_norm", post_attention, layer.post_norm)
    yield from norm("layers.{i}.mlp_norm", LAYER + "post_attention_layernorm", layer.pre_norm)
    yield from fused_mlp_weights()
    yield from norm("layers.{i}.mlp_post_norm", LAYER + "post_mlp_layernorm", layer.post_norm)


GLM = Family(
    name="glm",
    model_types=("glm",),
    read=_read_glm,
    weights=_weights,
    defaults=_DEFAULTS,
    ignored_tensors=IGNORED_TENSORS,
)
GLM4 = Family(
    name="glm4",
    model_types=("glm4",),
    read=_read_glm4,
    weights=_weights,
    defaults=_DEFAULTS,
    ignored_tensors=IGNORED_TENSORS,
)
