"""StableLM 2 (arXiv 2402.17834), 3B, 12B: LayerNorm, partial rope.

In some, each head of q and k has a norm of its own, or both branches share one.
"""

from collections.abc import Iterator

from jaxinfer.config import LayerSpec, ModelConfig
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_rope import rope
from jaxinfer.models.hf_specs import attention, decoder, head_dim, layer_norm, num_layers
from jaxinfer.models.llama import (
    IGNORED_TENSORS,
    LAYER,
    gated_mlp,
    mlp_weights,
    outer_weights,
    owns_kv,
    projection_weights,
)
from jaxinfer.models.weights import Family, WeightRule, norm


def _read(fields: HfConfig) -> ModelConfig:
    fields.only("head_dim", None)
    dim, norms = head_dim(fields), layer_norm(fields, bias=True)
    has_qk_norm = fields.flag("qk_layernorm", False)
    mixer = attention(
        fields,
        dim,
        rope=rope(fields, dim, rotary_share=0.25),
        qk_norm=layer_norm(fields) if has_qk_norm else None,
        qk_norm_over="each_head",
        qkv_bias=fields.flag("use_qkv_bias", False),
    )
    is_parallel = fields.flag("use_parallel_residual", False)
    layer = LayerSpec(
        mixer=mixer,
        mlp=gated_mlp(fields),
        pre_norm=norms,
        parallel=is_parallel,
        shared_norm=is_parallel,
    )
    return decoder(fields, layers=(layer,) * num_layers(fields), final_norm=norms)


def _weights(config: ModelConfig) -> Iterator[WeightRule]:
    layer = config.layers[0]
    yield from outer_weights(config)
    yield from norm("layers.{i}.mixer_norm", LAYER + "input_layernorm", layer.pre_norm)
    yield from projection_weights(config)
    if layer.attention.qk_norm is not None:
        yield from _weights_of_heads()
    if not layer.shared_norm:
        yield from norm("layers.{i}.mlp_norm", LAYER + "post_attention_layernorm", layer.pre_norm)
    yield from mlp_weights(config)


def _weights_of_heads() -> Iterator[WeightRule]:
    """The norms of q and k, each head's in a tensor of its own."""

    def num_heads(spec: LayerSpec) -> int:
        return spec.mixer.num_heads

    def num_kv_heads(spec: LayerSpec) -> int:
        return spec.attention.num_kv_heads

    for part, count in (("q", num_heads), ("k", num_kv_heads)):
        source = f"{LAYER}self_attn.{part}_layernorm.norms.{{e}}.weight"
        target = f"layers.{{i}}.mixer.{part}_norm.scale"
        where = owns_kv if part == "k" else None
        yield WeightRule(target=target, source=source, pieces=count, where=where)


STABLELM = Family(
    name="stablelm",
    model_types=("stablelm",),
    read=_read,
    weights=_weights,
    defaults={"num_key_value_heads": 32},
    ignored_tensors=IGNORED_TENSORS,
)
