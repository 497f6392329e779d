"""Llama 1 to 3, SmolLM2, TinyLlama: RMSNorm, rotary positions, grouped queries, SwiGLU.

Most later families have its tensor names or differ in a few of them: they take its rules.
"""

from collections.abc import Iterator

from jaxinfer.config import AttentionSpec, LayerSpec, MlpSpec, ModelConfig, NormSpec
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_rope import rope
from jaxinfer.models.hf_specs import attention, decoder, head_dim, num_layers, rms_norm
from jaxinfer.models.weights import (
    Family,
    WeightRule,
    embedding,
    linear,
    norm,
    only_where,
)

LAYER = "model.layers.{i}."
#: Rotary frequencies that old checkpoints carry, and the copy of a tied head.
IGNORED_TENSORS = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"lm_head\.weight")


def _read(fields: HfConfig) -> ModelConfig:
    fields.only("rope_interleaved", False)
    dim, bias = head_dim(fields), fields.flag("attention_bias", False)
    mixer = attention(fields, dim, rope=rope(fields, dim), qkv_bias=bias, out_bias=bias)
    mlp = gated_mlp(fields, bias=fields.flag("mlp_bias", False))
    return pre_norm_decoder(fields, mixer, mlp, rms_norm(fields))


def pre_norm_decoder(
    fields: HfConfig, mixer: AttentionSpec, mlp: MlpSpec, norms: NormSpec
) -> ModelConfig:
    """A stack of equal layers, each branch after a norm."""
    layer = LayerSpec(mixer=mixer, mlp=mlp, pre_norm=norms)
    return decoder(fields, layers=(layer,) * num_layers(fields), final_norm=norms)


def gated_mlp(fields: HfConfig, bias: bool = False) -> MlpSpec:
    """The gated MLP of Llama's config fields."""
    activation = fields.activation("hidden_act")
    return MlpSpec(width=fields.size("intermediate_size"), activation=activation, bias=bias)


def weights(config: ModelConfig) -> Iterator[WeightRule]:
    """The rules of a pre-norm stack with Llama's tensor names."""
    layer = config.layers[0]
    yield from outer_weights(config)
    yield from norm("layers.{i}.mixer_norm", LAYER + "input_layernorm", layer.pre_norm)
    yield from attention_weights(config)
    yield from norm("layers.{i}.mlp_norm", LAYER + "post_attention_layernorm", layer.pre_norm)
    yield from mlp_weights(config)


def outer_weights(config: ModelConfig) -> Iterator[WeightRule]:
    """Embedding, final norm and head."""
    yield embedding("embed", "model.embed_tokens")
    yield from norm("final_norm", "model.norm", config.final_norm)
    if not config.tied_head:
        yield from linear("head", "lm_head", bias=config.head_bias)


def attention_weights(config: ModelConfig) -> Iterator[WeightRule]:
    """q, k, v, o and, where there are such, the norms of q and k."""
    yield from projection_weights(config)
    yield from qk_norm_weights(config, "q_norm", "k_norm")


def projection_weights(config: ModelConfig, out: str = "o_proj") -> Iterator[WeightRule]:
    """q, k, v, and o by this name."""
    mixer = config.layers[0].attention
    for part, where in (("q", None), ("k", owns_kv), ("v", _has_v)):
        source = f"{LAYER}self_attn.{part}_proj"
        rules = linear(f"layers.{{i}}.mixer.{part}", source, bias=mixer.qkv_bias)
        yield from rules if where is None else only_where(where, rules)
    yield from linear("layers.{i}.mixer.o", f"{LAYER}self_attn.{out}", bias=mixer.out_bias)


def qk_norm_weights(config: ModelConfig, q_norm: str, k_norm: str) -> Iterator[WeightRule]:
    """The norms of q and k by these names; nothing where there are none."""
    spec = config.layers[0].attention.qk_norm
    yield from norm("layers.{i}.mixer.q_norm", f"{LAYER}self_attn.{q_norm}", spec)
    k_rules = norm("layers.{i}.mixer.k_norm", f"{LAYER}self_attn.{k_norm}", spec)
    yield from only_where(owns_kv, k_rules)


def mlp_weights(config: ModelConfig) -> Iterator[WeightRule]:
    """gate, up and down of the layers that have no experts."""
    dense = [layer.mlp for layer in config.layers if isinstance(layer.mlp, MlpSpec)]
    if dense:
        yield from only_where(_is_dense, gated_mlp_weights("mlp", "mlp", bias=dense[0].bias))


def gated_mlp_weights(target: str, source: str, *, bias: bool) -> Iterator[WeightRule]:
    """gate, up and down of an MLP at these places in a layer."""
    for part in ("gate", "up", "down"):
        name = f"{LAYER}{source}.{part}_proj"
        yield from linear(f"layers.{{i}}.{target}.{part}", name, bias=bias)


def owns_kv(layer: LayerSpec) -> bool:
    """Whether the layer has keys and values of its own."""
    return layer.kv_from is None


def _has_v(layer: LayerSpec) -> bool:
    return owns_kv(layer) and not layer.attention.v_from_k


def _is_dense(layer: LayerSpec) -> bool:
    return isinstance(layer.mlp, MlpSpec)


LLAMA = Family(
    name="llama",
    model_types=("llama",),
    read=_read,
    weights=weights,
    ignored_fields=frozenset({"is_llama_config"}),
    ignored_tensors=IGNORED_TENSORS,
)
