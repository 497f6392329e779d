"""Gemma 2 (arXiv 2408.00118): softcaps, a norm before and after each branch, windows in turn.

VaultGemma (arXiv 2510.15001) has no norms after.
"""

from collections.abc import Iterator

from jaxinfer.config import LayerSpec, ModelConfig
from jaxinfer.models.gemma import GEMMA_DEFAULTS, gemma_decoder, gemma_mlp, gemma_norm
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_rope import rope
from jaxinfer.models.hf_specs import attention, head_dim, num_layers, sliding_window, windowed
from jaxinfer.models.llama import (
    IGNORED_TENSORS,
    LAYER,
    attention_weights,
    mlp_weights,
    outer_weights,
)
from jaxinfer.models.weights import Family, WeightRule, norm, only_where


def _read_gemma2(fields: HfConfig) -> ModelConfig:
    return _read(fields, has_post_norms=True)


def _read_vaultgemma(fields: HfConfig) -> ModelConfig:
    return _read(fields, has_post_norms=False)


def _read(fields: HfConfig, *, has_post_norms: bool) -> ModelConfig:
    dim, bias = head_dim(fields), fields.flag("attention_bias", False)
    mixer = attention(
        fields,
        dim,
        scale=fields.size("query_pre_attn_scalar") ** -0.5,
        rope=rope(fields, dim),
        softcap=fields.optional_positive("attn_logit_softcapping"),
        qkv_bias=bias,
        out_bias=bias,
    )
    norms = gemma_norm(fields)
    layer = LayerSpec(
        mixer=mixer,
        mlp=gemma_mlp(fields),
        pre_norm=norms,
        post_norm=norms if has_post_norms else None,
    )
    count, window = num_layers(fields), sliding_window(fields)
    layers = windowed(fields, layer, count, window, lambda i: i % 2 == 0)
    softcap = fields.optional_positive("final_logit_softcapping")
    return gemma_decoder(fields, layers=layers, logit_softcap=softcap)


def weights(config: ModelConfig) -> Iterator[WeightRule]:
    """Llama's names, but four norms a layer; two where there are none after the branches."""
    layer = config.layers[0]
    yield from outer_weights(config)
    yield from norm("layers.{i}.mixer_norm", LAYER + "input_layernorm", layer.pre_norm)
    yield from attention_weights(config)
    post_attention = LAYER + "post_attention_layernorm"
    yield from norm("layers.{i}.mixer_post_norm", post_attention, layer.post_norm)
    before_mlp = LAYER + "pre_feedforward_layernorm"
    yield from only_where(
        lambda layer: layer.has_mlp_norm, norm("layers.{i}.mlp_norm", before_mlp, layer.pre_norm)
    )
    yield from mlp_weights(config)
    post_mlp = LAYER + "post_feedforward_layernorm"
    yield from norm("layers.{i}.mlp_post_norm", post_mlp, layer.post_norm)


_DEFAULTS = {
    **GEMMA_DEFAULTS,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
GEMMA2 = Family(
    name="gemma2",
    model_types=("gemma2",),
    read=_read_gemma2,
    weights=weights,
    defaults=_DEFAULTS,
    # sliding_window_size: the old name, always written beside the new one.
    ignored_fields=frozenset({"hidden_act", "sliding_window_size"}),
    ignored_tensors=IGNORED_TENSORS,
)
VAULTGEMMA = Family(
    name="vaultgemma",
    model_types=("vaultgemma",),
    read=_read_vaultgemma,
    weights=weights,
    defaults=_DEFAULTS,
    ignored_tensors=IGNORED_TENSORS,
)
