"""The specs that nearly all families make from the same fields of a Hugging Face config."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from jaxinfer.config import (
    AttentionSpec,
    DynamicScaling,
    LayerSpec,
    ModelConfig,
    NormSpec,
    YarnScaling,
    shared_kv,
)
from jaxinfer.models.hf_config import MAX_LAYERS, MAX_LEN, MAX_VOCAB, HfConfig
from jaxinfer.models.hf_quantization import refuse_other_quantizations

_FULL, _SLIDING = "full_attention", "sliding_attention"


def num_layers(fields: HfConfig, name: str = "num_hidden_layers") -> int:
    """How many layers, bounded so that a tuple of them can be made."""
    return fields.size(name, most=MAX_LAYERS)


def max_len(fields: HfConfig) -> int:
    """``max_position_embeddings``."""
    return fields.size("max_position_embeddings", most=MAX_LEN)


def head_dim(fields: HfConfig) -> int:
    """``head_dim``; where it is absent an equal share of the width."""
    width, num_heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    if fields.get("head_dim") is None and width % num_heads:
        raise fields.error("num_attention_heads", num_heads, f"a divisor of hidden_size = {width}")
    return fields.size("head_dim", width // num_heads)


def attention(fields: HfConfig, dim: int, **kwargs: Any) -> AttentionSpec:
    """The attention of heads of size ``dim``; ``kwargs`` are further fields of the spec."""
    num_heads = fields.size("num_attention_heads")
    num_kv_heads = fields.size("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        allowed = f"a divisor of num_attention_heads = {num_heads}"
        raise fields.error("num_key_value_heads", num_kv_heads, allowed)
    return AttentionSpec(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=dim, **kwargs)


def sliding_window(fields: HfConfig) -> int | None:
    """``sliding_window``, None where there is none."""
    if fields.get("sliding_window") is None:
        return None
    return fields.size("sliding_window", most=MAX_LEN)


def windowed(
    fields: HfConfig,
    layer: LayerSpec,
    count: int,
    window: int | None,
    is_sliding: Callable[[int], bool],
) -> tuple[LayerSpec, ...]:
    """``count`` layers, of which ``layer_types`` or else ``is_sliding`` give some a window."""
    types = fields.get("layer_types")
    if types is None:
        types = [_SLIDING if window and is_sliding(i) else _FULL for i in range(count)]
    is_list = isinstance(types, list | tuple) and len(types) == count
    if not is_list or not all(kind in (_FULL, _SLIDING) for kind in types):
        raise fields.error("layer_types", types, f"{count} times {_FULL!r} or {_SLIDING!r}")
    if window is None and _SLIDING in types:
        raise fields.error("layer_types", types, f"all {_FULL!r}, as there is no sliding window")
    sliding = replace(layer, mixer=replace(layer.attention, window=window))
    return tuple(sliding if kind == _SLIDING else layer for kind in types)


def only_windows_rotate(layers: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
    """The layers, those that see everything without rope (NoPE, arXiv 2501.18795)."""
    return tuple(
        replace(layer, mixer=replace(layer.attention, rope=None))
        if layer.mixer.window is None
        else layer
        for layer in layers
    )


def last_share_kv(
    fields: HfConfig, layers: tuple[LayerSpec, ...], default: int
) -> tuple[LayerSpec, ...]:
    """The layers, of which the last ``num_kv_shared_layers`` read the keys and values of the last
    layer before them that sees as far.
    """
    count = fields.count("num_kv_shared_layers", default, most=MAX_LAYERS)
    first = len(layers) - count
    windows = [layer.mixer.window for layer in layers[: max(first, 0)]]
    if not {layer.mixer.window for layer in layers[max(first, 0) :]} <= set(windows):
        allowed = f"a number that leaves a layer of each kind before them, of {len(layers)} layers"
        raise fields.error("num_kv_shared_layers", count, allowed)
    last = {window: i for i, window in enumerate(windows)}
    sharing = (replace(layer, kv_from=last[layer.mixer.window]) for layer in layers[first:])
    return (*layers[:first], *sharing)


def rms_norm(fields: HfConfig, eps: float = 1e-6, **kwargs: Any) -> NormSpec:
    """RMSNorm with ``rms_norm_eps``."""
    return NormSpec(eps=fields.positive("rms_norm_eps", eps), **kwargs)


def layer_norm(fields: HfConfig, name: str = "layer_norm_eps", **kwargs: Any) -> NormSpec:
    """LayerNorm with the epsilon of this field."""
    return NormSpec(kind="layer", eps=fields.positive(name, 1e-5), **kwargs)


def decoder(
    fields: HfConfig,
    *,
    layers: tuple[LayerSpec, ...],
    decodes: tuple[str, ...] = (),
    fused_kv: bool = False,
    **kwargs: Any,
) -> ModelConfig:
    """A whole decoder: the fields that nearly all families share, and ``kwargs`` beside them.

    ``width`` and ``max_len`` are read here unless they are among the ``kwargs``. ``decodes``: the
    quantisations, beside blocks of FP8, whose tensors are decoded as they are read. ``fused_kv``:
    queries, keys and values are one tensor.
    """
    fields.only("is_encoder_decoder", False)
    fields.only("add_cross_attention", False)
    fields.only("pruned_heads", {}, [])
    refuse_other_quantizations(fields, decodes)
    if "width" not in kwargs:
        kwargs["width"] = fields.size("hidden_size")
    if "max_len" not in kwargs:
        kwargs["max_len"] = _served_len(max_len(fields), layers)
    return ModelConfig(
        model_type=fields.get("model_type"),
        vocab_size=fields.size("vocab_size", most=MAX_VOCAB),
        layers=_sharing_kv(fields, layers, fused_kv),
        tied_head=fields.flag("tie_word_embeddings", False),
        dtype=fields.get("dtype", fields.get("torch_dtype", "bfloat16")),
        bos_token_id=next(iter(_token_ids(fields, "bos_token_id")), None),
        eos_token_ids=_token_ids(fields, "eos_token_id"),
        **kwargs,
    )


def _sharing_kv(
    fields: HfConfig, layers: tuple[LayerSpec, ...], fused_kv: bool
) -> tuple[LayerSpec, ...]:
    """The layers, of which each ``kv_sharing_factor`` consecutive ones read the keys and values of
    their first (CLA, arXiv 2405.12981). The field is ours: Hugging Face has none for it.
    """
    name, count = "kv_sharing_factor", len(layers)
    factor = fields.size(name, 1, most=count)
    if factor == 1:
        return layers
    if fused_kv:
        raise fields.error(name, factor, "1 where queries, keys and values are one tensor")
    if not all(isinstance(layer.mixer, AttentionSpec) for layer in layers):
        raise fields.error(name, factor, "1 where layers hold latents")
    if any(layer.kv_from is not None for layer in layers):
        raise fields.error(name, factor, "1 beside num_kv_shared_layers")
    for i, layer in enumerate(layers):
        owner = i - i % factor
        kinds = (_kind_of_kv(spec) for spec in (layer, layers[owner]))
        if next(kinds) != next(kinds):
            allowed = f"one that leaves out layer {i}, for layer {owner} has another kind of pages"
            raise fields.error(name, factor, allowed)
    return shared_kv(layers, factor)


def _kind_of_kv(layer: LayerSpec) -> tuple[int, int, int | None]:
    mixer = layer.attention
    return mixer.num_kv_heads, mixer.head_dim, mixer.window


def _served_len(positions: int, layers: tuple[LayerSpec, ...]) -> int:
    """``max_position_embeddings``, or how far YaRN and dynamic scaling reach beyond it."""
    scalings = (layer.mixer.rope.scaling for layer in layers if layer.mixer.rope is not None)
    reach = [
        int(scaling.factor * scaling.original_len)
        for scaling in scalings
        if isinstance(scaling, DynamicScaling | YarnScaling)
    ]
    return min(max([positions, *reach]), MAX_LEN)


def _token_ids(fields: HfConfig, name: str) -> tuple[int, ...]:
    """The ids in a field that holds none, one, or a list of them."""
    value = fields.get(name, [])
    ids = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < MAX_VOCAB for i in ids):
        raise fields.error(name, value, "a token id, or a list of them")
    return tuple(ids)
