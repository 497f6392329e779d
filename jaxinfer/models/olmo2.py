"""OLMo 2 (arXiv 2501.00656) and 3: norms after each branch only, q and k normed over all heads.

OLMo 3 adds sliding windows, and stretches the rope of its full layers alone.
"""

from collections.abc import Iterator

from jaxinfer.config import LayerSpec, ModelConfig, NormSpec, RopeSpec
from jaxinfer.models.gemma3 import with_local_rope
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_rope import rope, ropes_by_layer_type
from jaxinfer.models.hf_specs import (
    attention,
    decoder,
    head_dim,
    num_layers,
    rms_norm,
    sliding_window,
    windowed,
)
from jaxinfer.models.llama import (
    IGNORED_TENSORS,
    LAYER,
    attention_weights,
    gated_mlp,
    mlp_weights,
    outer_weights,
)
from jaxinfer.models.weights import Family, WeightRule, norm


def _read_olmo2(fields: HfConfig) -> ModelConfig:
    dim = head_dim(fields)
    layers = (_layer(fields, dim, rope(fields, dim)),) * num_layers(fields)
    return decoder(fields, layers=layers, final_norm=_norm(fields))


def _read_olmo3(fields: HfConfig) -> ModelConfig:
    dim = head_dim(fields)
    full_rope, sliding_rope = ropes_by_layer_type(fields, dim, theta=500000.0)
    layer, window = _layer(fields, dim, full_rope), sliding_window(fields)
    layers = windowed(fields, layer, num_layers(fields), window, lambda i: (i + 1) % 4 != 0)
    layers = with_local_rope(layers, sliding_rope)
    return decoder(fields, layers=layers, final_norm=_norm(fields))


def _layer(fields: HfConfig, dim: int, rope_spec: RopeSpec) -> LayerSpec:
    bias, norms = fields.flag("attention_bias", False), _norm(fields)
    mixer = attention(
        fields,
        dim,
        rope=rope_spec,
        qk_norm=norms,
        qk_norm_over="all",
        qkv_bias=bias,
        out_bias=bias,
    )
    return LayerSpec(mixer=mixer, mlp=gated_mlp(fields), pre_norm=None, post_norm=norms)


def _norm(fields: HfConfig) -> NormSpec:
    return rms_norm(fields, eps=1e-5)


def weights(config: ModelConfig) -> Iterator[WeightRule]:
    """Llama's names, but norms after the branches only."""
    layer = config.layers[0]
    yield from outer_weights(config)
    yield from attention_weights(config)
    post_attention = LAYER + "post_attention_layernorm"
    yield from norm("layers.{i}.mixer_post_norm", post_attention, layer.post_norm)
    yield from mlp_weights(config)
    post_mlp = LAYER + "post_feedforward_layernorm"
    yield from norm("layers.{i}.mlp_post_norm", post_mlp, layer.post_norm)


OLMO2 = Family(
    name="olmo2",
    model_types=("olmo2",),
    read=_read_olmo2,
    weights=weights,
    ignored_tensors=IGNORED_TENSORS,
)
OLMO3 = Family(
    name="olmo3",
    model_types=("olmo3",),
    read=_read_olmo3,
    weights=weights,
    defaults={"sliding_window": 4096},
    ignored_tensors=IGNORED_TENSORS,
)
