"""Phi 3, 3.5 mini, 4 mini (arXiv 2404.14219): fused q, k, v and fused gate, up; LongRoPE."""

from collections.abc import Callable, Iterator

from jaxinfer.config import LayerSpec, MlpSpec, ModelConfig
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_rope import rope
from jaxinfer.models.hf_specs import (
    attention,
    decoder,
    head_dim,
    num_layers,
    rms_norm,
    sliding_window,
)
from jaxinfer.models.llama import IGNORED_TENSORS, LAYER, gated_mlp, outer_weights
from jaxinfer.models.weights import Family, WeightRule, linear, norm

#: Stands beside the rope's own fields, and matters where there is a scaling.
_ORIGINAL_LEN = "original_max_position_embeddings"


def _read(fields: HfConfig) -> ModelConfig:
    for absent_bias in ("attention_bias", "mlp_bias", "lm_head_bias"):
        fields.only(absent_bias, False)
    dim, norms = head_dim(fields), rms_norm(fields, eps=1e-5)
    layer = LayerSpec(
        mixer=attention(fields, dim, rope=rope(fields, dim), window=sliding_window(fields)),
        mlp=gated_mlp(fields),
        pre_norm=norms,
    )
    layers = (layer,) * num_layers(fields)
    return decoder(fields, layers=layers, final_norm=norms, fused_kv=True)


def _weights(config: ModelConfig) -> Iterator[WeightRule]:
    layer = config.layers[0]
    yield from outer_weights(config)
    yield from norm("layers.{i}.mixer_norm", LAYER + "input_layernorm", layer.pre_norm)
    fused = LAYER + "self_attn.qkv_proj"
    for part in range(3):
        yield from linear(f"layers.{{i}}.mixer.{'qkv'[part]}", fused, rows=_qkv_rows(part))
    yield from linear("layers.{i}.mixer.o", LAYER + "self_attn.o_proj")
    yield from norm("layers.{i}.mlp_norm", LAYER + "post_attention_layernorm", layer.pre_norm)
    yield from fused_mlp_weights()


def fused_mlp_weights() -> Iterator[WeightRule]:
    """gate and up out of one tensor, and down."""
    fused = LAYER + "mlp.gate_up_proj"
    yield from linear("layers.{i}.mlp.gate", fused, rows=_gate_up_rows(0))
    yield from linear("layers.{i}.mlp.up", fused, rows=_gate_up_rows(1))
    yield from linear("layers.{i}.mlp.down", LAYER + "mlp.down_proj")


def _qkv_rows(part: int) -> Callable[[ModelConfig, int], slice]:
    """The rows of q (part 0), k (1) or v (2): one below the other."""

    def rows(config: ModelConfig, layer: int) -> slice:
        mixer = config.layers[layer].attention
        heads = (mixer.num_heads, mixer.num_kv_heads, mixer.num_kv_heads)
        start = sum(heads[:part]) * mixer.head_dim
        return slice(start, start + heads[part] * mixer.head_dim)

    return rows


def _gate_up_rows(part: int) -> Callable[[ModelConfig, int], slice]:
    """The rows of gate (part 0) or up (1)."""

    def rows(config: ModelConfig, layer: int) -> slice:
        mlp = config.layers[layer].mlp
        assert isinstance(mlp, MlpSpec)
        return slice(part * mlp.width, (part + 1) * mlp.width)

    return rows


PHI3 = Family(
    name="phi3",
    model_types=("phi3",),
    read=_read,
    weights=_weights,
    defaults={_ORIGINAL_LEN: 4096},
    # The last two are of the authors' own code, for kinds of layers that they did not publish.
    ignored_fields=frozenset({_ORIGINAL_LEN, "full_attn_mod", "interpolate_factor"}),
    ignored_tensors=IGNORED_TENSORS,
)
