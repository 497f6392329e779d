"""Gemma 4 text: larger heads in global layers, shared KV, an input for each layer, or experts.

Of a multimodal checkpoint the language model is taken.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from jaxinfer.config import (
    AttentionSpec,
    LayerSpec,
    MlpSpec,
    ModelConfig,
    MoeSpec,
    RouterSpec,
)
from jaxinfer.models.gemma import gemma_mlp
from jaxinfer.models.gemma2 import weights as gemma_weights
from jaxinfer.models.gemma3n import (
    SENSES_FIELDS,
    SENSES_TENSORS,
    UNREAD_KV,
    layer_input,
    layer_input_weights,
)
from jaxinfer.models.hf_config import MAX_WIDTH, HfConfig
from jaxinfer.models.hf_experts import MAX_EXPERTS, moe_of
from jaxinfer.models.hf_multimodal import TEXT_NAMES, read_text_part
from jaxinfer.models.hf_rope import rope_of
from jaxinfer.models.hf_specs import (
    attention,
    decoder,
    head_dim,
    last_share_kv,
    num_layers,
    rms_norm,
    sliding_window,
    windowed,
)
from jaxinfer.models.llama import IGNORED_TENSORS, LAYER, gated_mlp_weights
from jaxinfer.models.weights import Family, WeightRule, linear, norm

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 262144,
    "head_dim": 256,
    "global_head_dim": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "sliding_window": 512,
    "vocab_size_per_layer_input": 262144,
    "hidden_size_per_layer_input": 256,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {
            "rope_type": "proportional",
            "partial_rotary_factor": 0.25,
            "rope_theta": 1e6,
        },
    },
}
_SENSES_FIELDS = SENSES_FIELDS | {"video_token_id"}


def _read(fields: HfConfig) -> ModelConfig:
    return read_text_part(fields, _read_text, "gemma4_text", _DEFAULTS, ())


def _read_text(fields: HfConfig) -> ModelConfig:
    # "vision": tokens of an image see each other; there are none here.
    fields.only("use_bidirectional_attention", None, "vision")
    norms, bias = rms_norm(fields), fields.flag("attention_bias", False)
    mixer = attention(
        fields,
        head_dim(fields),
        scale=1.0,
        qk_norm=norms,
        v_norm=replace(norms, weight=False),
        qkv_bias=bias,
        out_bias=bias,
    )
    layer = LayerSpec(
        mixer=mixer, mlp=_mlp(fields), pre_norm=norms, post_norm=norms, learned_scale=True
    )
    count, window = num_layers(fields), sliding_window(fields)
    layers = windowed(fields, layer, count, window, lambda i: (i + 1) % 6 != 0 and i + 1 < count)
    if layers[-1].mixer.window is not None:
        allowed = "a list that ends with 'full_attention'"
        raise fields.error("layer_types", fields.get("layer_types"), allowed)
    layers = last_share_kv(fields, _with_ropes(fields, _with_heads(fields, layers)), default=0)
    if fields.flag("use_double_wide_mlp", False):
        layers = tuple(map(_doubled, layers))
    has_input = fields.count("hidden_size_per_layer_input", most=MAX_WIDTH) > 0
    fields.get("vocab_size_per_layer_input")  # is there without inputs, too
    return decoder(
        fields,
        layers=layers,
        final_norm=norms,
        embed_scale=math.sqrt(fields.size("hidden_size")),
        logit_softcap=fields.optional_positive("final_logit_softcapping"),
        layer_input=layer_input(fields) if has_input else None,
    )


def _with_heads(fields: HfConfig, layers: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
    """Head size and kv heads of global layers, by fields of their own or layer by layer."""
    v_from_k = fields.flag("attention_k_eq_v", False)
    global_dim = fields.size("global_head_dim")
    num_kv_heads = layers[0].attention.num_kv_heads
    global_kv_heads = fields.size("num_global_key_value_heads", num_kv_heads)
    by_layer, no_sizes = _by_layer(fields, len(layers)), HfConfig({})

    def heads(i: int, mixer: AttentionSpec) -> AttentionSpec:
        is_global = mixer.window is None
        if by_layer is not None:
            sizes, name = by_layer.get(i, no_sizes), "num_key_value_heads"
            dim = sizes.size("head_dim", mixer.head_dim)
            kv = sizes.size(name, num_kv_heads)
            sizes.refuse_unread()
        else:
            sizes, name = fields, "num_global_key_value_heads"
            dim = global_dim if is_global else mixer.head_dim
            kv = global_kv_heads if is_global and v_from_k else num_kv_heads
        if mixer.num_heads % kv:
            allowed = f"a divisor of num_attention_heads = {mixer.num_heads}"
            raise sizes.error(name, kv, allowed)
        return replace(mixer, head_dim=dim, num_kv_heads=kv, v_from_k=v_from_k and is_global)

    return tuple(replace(layer, mixer=heads(i, layer.attention)) for i, layer in enumerate(layers))


def _by_layer(fields: HfConfig, count: int) -> dict[int, HfConfig] | None:
    """The fields that ``per_layer_config`` has for some of the layers; None where it is absent."""
    objects = fields.get("per_layer_config")
    if objects is None:
        return None
    names = list(objects) if isinstance(objects, dict) else [None]
    numbers = [int(n) if isinstance(n, str) and n.isdecimal() else count for n in names]
    if any(number >= count for number in numbers):
        allowed = f"an object with the numbers of layers, below {count}, as its names"
        raise fields.error("per_layer_config", objects, allowed)
    return {
        number: HfConfig(objects[name], f"per_layer_config.{name}.")
        for number, name in zip(numbers, names, strict=True)
    }


def _with_ropes(fields: HfConfig, layers: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
    """Each kind of layer with the rope that ``rope_parameters`` has for it."""
    # Null is what transformers means by nothing, too.
    default = HfConfig(_DEFAULTS["rope_parameters"], "rope_parameters.")
    parameters = fields.inner("rope_parameters") or default

    def with_rope(layer: LayerSpec) -> LayerSpec:
        is_global, dim = layer.mixer.window is None, layer.attention.head_dim
        kind = "full_attention" if is_global else "sliding_attention"
        rope = rope_of(parameters.inner(kind), fields, dim, theta=1e6 if is_global else 1e4)
        if rope.rotary_dim != dim:
            allowed = "one that turns part of a head by rope_type = 'proportional' only"
            raise parameters.error(kind, parameters.get(kind), allowed)
        return replace(layer, mixer=replace(layer.mixer, rope=rope))

    changed = {layer: with_rope(layer) for layer in set(layers)}
    parameters.refuse_unread(ignored={"full_attention", "sliding_attention"})
    return tuple(changed[layer] for layer in layers)


def _mlp(fields: HfConfig) -> MlpSpec | MoeSpec:
    dense = gemma_mlp(fields)
    counts = ("num_experts", "top_k_experts", "moe_intermediate_size")
    if not fields.flag("enable_moe_block", False):
        for name in counts:
            fields.get(name)
        return dense
    num_experts, top_k = (fields.size(name, most=MAX_EXPERTS) for name in counts[:2])
    if top_k > num_experts:
        raise fields.error("top_k_experts", top_k, f"at most num_experts = {num_experts}")
    router = RouterSpec(
        num_experts=num_experts,
        top_k=top_k,
        expert_scale=True,
        logit_scale=fields.size("hidden_size") ** -0.5,
    )
    expert = replace(dense, width=fields.size("moe_intermediate_size"))
    return MoeSpec(router=router, expert=expert, shared=dense, part_norm=rms_norm(fields))


def _doubled(layer: LayerSpec) -> LayerSpec:
    """A layer that shares keys and values, with an MLP of twice the width."""
    mlp = layer.mlp
    if layer.kv_from is None or mlp is None:
        return layer
    if isinstance(mlp, MlpSpec):
        return replace(layer, mlp=replace(mlp, width=2 * mlp.width))
    assert mlp.shared is not None
    shared = replace(mlp.shared, width=2 * mlp.shared.width)
    return replace(layer, mlp=replace(mlp, shared=shared))


def _weights(config: ModelConfig) -> Iterator[WeightRule]:
    yield from gemma_weights(config)
    yield WeightRule(target="layers.{i}.scale", source=LAYER + "layer_scalar")
    yield from layer_input_weights(config)
    moe = moe_of(config)
    if moe is not None:
        yield from _expert_weights(moe)


def _expert_weights(moe: MoeSpec) -> Iterator[WeightRule]:
    ours = "layers.{i}.mlp."
    yield from linear(ours + "router", LAYER + "router.proj")
    yield WeightRule(target=ours + "router_norm.scale", source=LAYER + "router.scale")
    yield WeightRule(target=ours + "expert_scale", source=LAYER + "router.per_expert_scale")
    width = moe.expert.width
    stacked = (
        ("gate", "gate_up_proj", slice(0, width)),
        ("up", "gate_up_proj", slice(width, 2 * width)),
        ("down", "down_proj", slice(None)),
    )
    for part, tensor, rows in stacked:
        yield WeightRule(
            target=f"{ours}experts.{part}.kernel",
            source=f"{LAYER}experts.{tensor}",
            rows=partial(_rows, rows),
            is_stacked=True,
        )
    yield from gated_mlp_weights("mlp.shared", "mlp", bias=False)
    for part, number in (("shared", "_1"), ("expert", "_2")):
        before = LAYER + "pre_feedforward_layernorm" + ("" if part == "shared" else number)
        after = LAYER + "post_feedforward_layernorm" + number
        yield from norm(f"{ours}{part}_norm", before, moe.part_norm)
        yield from norm(f"{ours}{part}_post_norm", after, moe.part_norm)


def _rows(rows: slice, config: ModelConfig, layer: int) -> slice:
    return rows


GEMMA4 = Family(
    name="gemma4",
    model_types=("gemma4_text", "gemma4"),
    read=_read,
    weights=_weights,
    defaults=_DEFAULTS,
    ignored_fields=_SENSES_FIELDS,
    ignored_tensors=(*IGNORED_TENSORS, SENSES_TENSORS, UNREAD_KV),
    renamed=TEXT_NAMES,
)
