"""Llama 4 text: Scout, Maverick. Experts read what the router weighed; some layers have no rope.

Layers with rope attend in chunks; layers without have queries that grow with their position. Of a
multimodal checkpoint the language model is taken.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from jaxinfer.config import (
    AttentionSpec,
    LayerSpec,
    MlpSpec,
    ModelConfig,
    MoeSpec,
    NormSpec,
    QueryTemperature,
)
from jaxinfer.models.hf_config import MAX_LAYERS, MAX_LEN, HfConfig
from jaxinfer.models.hf_experts import BALANCING_FIELDS, expert_mlp, has_experts, moe_of, router
from jaxinfer.models.hf_multimodal import TEXT_NAMES, read_text_part
from jaxinfer.models.hf_rope import rope
from jaxinfer.models.hf_specs import attention, decoder, head_dim, num_layers, rms_norm
from jaxinfer.models.llama import (
    IGNORED_TENSORS,
    LAYER,
    attention_weights,
    gated_mlp_weights,
    outer_weights,
)
from jaxinfer.models.weights import Family, WeightRule, linear, norm, only_where

_MLP = "feed_forward"
#: Chunks are told to the kernels as pages.
_LEAST_PAGE = 8
_CHUNKED, _FULL = "chunked_attention", "full_attention"
_DEFAULTS = {
    "vocab_size": 202048,
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 131072,
    "num_experts_per_tok": 1,
    "num_local_experts": 16,
    "attention_chunk_size": 8192,
}
_IGNORED_FIELDS = BALANCING_FIELDS | {"router_jitter_noise", "for_llm_compressor"}
_VISION_FIELDS = {
    "vision_config",
    "boi_token_index",
    "eoi_token_index",
    "image_token_index",
}


def _read(fields: HfConfig) -> ModelConfig:
    return read_text_part(fields, _read_text, "llama4_text", _DEFAULTS, _IGNORED_FIELDS)


def _read_text(fields: HfConfig) -> ModelConfig:
    count, norms = num_layers(fields), rms_norm(fields, eps=1e-5)
    expert = expert_mlp(fields)
    dense = replace(expert, width=fields.size("intermediate_size_mlp"))
    chosen = router(fields, "num_local_experts", "num_experts", scores="sigmoid", renormalize=False)
    moe = MoeSpec(router=chosen, expert=expert, shared=expert, weigh_input=True)
    sparse, mixers = _moe_layers(fields, count), _mixers(fields, count)
    layers = tuple(
        LayerSpec(mixer=mixer, mlp=moe if i in sparse else dense, pre_norm=norms)
        for i, mixer in enumerate(mixers)
    )
    return decoder(fields, layers=layers, final_norm=norms)


def _mixers(fields: HfConfig, count: int) -> list[AttentionSpec]:
    """The attention of every layer: with rope or without, in chunks or not."""
    dim, bias = head_dim(fields), fields.flag("attention_bias", False)
    # Neighbours turn together: the authors rotate complex numbers.
    turning = rope(fields, dim, theta=500000.0, interleaved=True)
    l2_norm = NormSpec(eps=fields.positive("rms_norm_eps", 1e-5), weight=False)
    has_rope = _has_rope(fields, count)
    chunk = None
    if fields.get("attention_chunk_size") is not None:
        chunk = fields.size("attention_chunk_size", most=MAX_LEN)
        if chunk % _LEAST_PAGE:
            raise fields.error("attention_chunk_size", chunk, f"a multiple of {_LEAST_PAGE}")
    types = fields.get("layer_types")
    if types is None:
        types = [_CHUNKED if turns else _FULL for turns in has_rope]
    if not _is_list_of(types, count, (_CHUNKED, _FULL)):
        raise fields.error("layer_types", types, f"{count} times {_CHUNKED!r} or {_FULL!r}")
    plain = attention(fields, dim, qkv_bias=bias, out_bias=bias)
    with_rope = replace(plain, rope=turning)
    if fields.flag("use_qk_norm", True):
        with_rope = replace(with_rope, qk_norm=l2_norm, qk_norm_after_rope=True)
    without = replace(plain, query_temperature=_temperature(fields))
    return [
        replace(with_rope if turns else without, chunk=chunk if kind == _CHUNKED else None)
        for turns, kind in zip(has_rope, types, strict=True)
    ]


def _temperature(fields: HfConfig) -> QueryTemperature | None:
    """How queries of layers without rope grow; the first configs say 4 where they mean true."""
    beta, interval = fields.positive("attn_scale", 0.1), fields.size("floor_scale", 8192)
    fields.only("attn_temperature_tuning", True, False, 4)
    if not fields.get("attn_temperature_tuning", True):
        return None
    return QueryTemperature(beta=beta, interval=interval, offset=1)


def _has_rope(fields: HfConfig, count: int) -> list[bool]:
    """``no_rope_layers``, which has a 1 for each layer *with* rope; else every n-th has none."""
    interval = fields.size("no_rope_layer_interval", 4, most=MAX_LAYERS)
    stated = fields.get("no_rope_layers")
    if not stated:
        return [(i + 1) % interval != 0 for i in range(count)]
    if not _is_list_of(stated, count, (0, 1)):
        raise fields.error("no_rope_layers", stated, f"{count} times 0 or 1")
    return [bool(turns) for turns in stated]


def _moe_layers(fields: HfConfig, count: int) -> set[int]:
    """``moe_layers``, or the last of every ``interleave_moe_layer_step`` layers."""
    step = fields.size("interleave_moe_layer_step", 1, most=MAX_LAYERS)
    stated = fields.get("moe_layers")
    if stated is None:
        return set(range(step - 1, count, step))
    if not isinstance(stated, list | tuple) or not all(i in range(count) for i in stated):
        raise fields.error("moe_layers", stated, f"numbers of layers, below {count}")
    return set(stated)


def _is_list_of(values: Any, count: int, allowed: tuple[Any, ...]) -> bool:
    is_list = isinstance(values, list | tuple) and len(values) == count
    return is_list and all(value in allowed for value in values)


def _weights(config: ModelConfig) -> Iterator[WeightRule]:
    layer = config.layers[0]
    yield from outer_weights(config)
    yield from norm("layers.{i}.mixer_norm", LAYER + "input_layernorm", layer.pre_norm)
    # The norms of q and k have no weights.
    yield from attention_weights(config)
    yield from norm("layers.{i}.mlp_norm", LAYER + "post_attention_layernorm", layer.pre_norm)
    yield from only_where(
        lambda layer: isinstance(layer.mlp, MlpSpec), gated_mlp_weights("mlp", _MLP, bias=False)
    )
    moe = moe_of(config)
    if moe is not None:
        yield from only_where(has_experts, _expert_weights(moe))


def _expert_weights(moe: MoeSpec) -> Iterator[WeightRule]:
    """Experts are stacked as [E, in, out] already, gate and up side by side."""
    width = moe.expert.width
    yield from linear("layers.{i}.mlp.router", f"{LAYER}{_MLP}.router")
    for part, source, pick in (
        ("gate", "gate_up_proj", _columns(slice(0, width))),
        ("up", "gate_up_proj", _columns(slice(width, 2 * width))),
        ("down", "down_proj", _columns(slice(None))),
    ):
        yield WeightRule(
            target=f"layers.{{i}}.mlp.experts.{part}.kernel",
            source=f"{LAYER}{_MLP}.experts.{source}",
            transform=pick,
        )
    yield from gated_mlp_weights("mlp.shared", f"{_MLP}.shared_expert", bias=False)


def _columns(columns: slice) -> Callable[[np.ndarray, ModelConfig, int], np.ndarray]:
    return lambda tensor, config, layer: tensor[..., columns]


LLAMA4 = Family(
    name="llama4",
    model_types=("llama4_text", "llama4"),
    read=_read,
    weights=_weights,
    defaults=_DEFAULTS,
    ignored_fields=_IGNORED_FIELDS | _VISION_FIELDS,
    ignored_tensors=(*IGNORED_TENSORS, r"(model\.)?(vision_model|multi_modal_projector)\..*"),
    renamed=TEXT_NAMES,
)
