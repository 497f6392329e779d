"""Multi-head latent attention as Hugging Face configs and checkpoints state it."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from jaxinfer.config import LatentSpec, ModelConfig, NormSpec, RopeSpec, YarnScaling
from jaxinfer.models.hf_config import HfConfig
from jaxinfer.models.hf_rope import rope
from jaxinfer.models.llama import LAYER
from jaxinfer.models.weights import WeightRule, linear, norm

#: Written by transformers, and worked out from the other sizes when it reads them.
DERIVED_FIELDS = frozenset({"head_dim", "qk_head_dim"})
#: The norms of the latents do not follow ``rms_norm_eps``.
_LATENT_NORM = NormSpec(eps=1e-6)


def latent_attention(
    fields: HfConfig, *, interleaved: bool, value_dim: int | None = None
) -> LatentSpec:
    """The mixer of DeepSeek's fields; ``value_dim``: of a head where ``v_head_dim`` is absent."""
    num_heads = fields.size("num_attention_heads")
    fields.only("num_key_value_heads", num_heads)
    nope_dim, rope_dim = fields.size("qk_nope_head_dim"), fields.size("qk_rope_head_dim")
    if rope_dim % 2:
        raise fields.error("qk_rope_head_dim", rope_dim, "even")
    turned = replace(rope(fields, rope_dim), interleaved=interleaved)
    has_q_rank = fields.get("q_lora_rank") is not None
    bias = fields.flag("attention_bias", False)
    return LatentSpec(
        num_heads=num_heads,
        q_rank=fields.size("q_lora_rank") if has_q_rank else None,
        query_norm=_LATENT_NORM if has_q_rank else None,
        kv_rank=fields.size("kv_lora_rank"),
        latent_norm=_LATENT_NORM,
        nope_dim=nope_dim,
        rope_dim=rope_dim,
        value_dim=fields.size("v_head_dim", value_dim),
        rope=turned,
        scale=_scale(turned, nope_dim + rope_dim),
        down_bias=bias,
        out_bias=bias,
    )


def _scale(rope: RopeSpec, query_dim: int) -> float:
    """YaRN with ``mscale_all_dim`` makes the logits larger by a factor that is in no rotation."""
    scale, scaling = query_dim**-0.5, rope.scaling
    if isinstance(scaling, YarnScaling) and scaling.mscale_all_dim and scaling.factor > 1:
        scale *= (0.1 * scaling.mscale_all_dim * math.log(scaling.factor) + 1.0) ** 2
    return scale


def latent_attention_weights(config: ModelConfig) -> Iterator[WeightRule]:
    """The parameters of the mixer; ``kv_b_proj`` has what makes keys and what makes values."""
    mixer = config.layers[0].latent
    ours, theirs = "layers.{i}.mixer.", LAYER + "self_attn."
    if mixer.q_rank is None:
        yield from linear(ours + "q", theirs + "q_proj")
    else:
        yield from linear(ours + "q_down", theirs + "q_a_proj", bias=mixer.down_bias)
        yield from norm(ours + "q_norm", theirs + "q_a_layernorm", mixer.query_norm)
        yield from linear(ours + "q_up", theirs + "q_b_proj")
    yield from linear(ours + "kv_down", theirs + "kv_a_proj_with_mqa", bias=mixer.down_bias)
    yield from norm(ours + "kv_norm", theirs + "kv_a_layernorm", mixer.latent_norm)
    for name, part in (("k_up", _keys), ("v_up", _values)):
        yield WeightRule(
            target=f"{ours}{name}.kernel",
            source=theirs + "kv_b_proj.weight",
            transform=_of_each_head(part),
        )
    yield from linear(ours + "o", theirs + "o_proj", bias=mixer.out_bias)


def _keys(both_NXR: np.ndarray, mixer: LatentSpec) -> np.ndarray:
    return both_NXR[:, : mixer.nope_dim]


def _values(both_NXR: np.ndarray, mixer: LatentSpec) -> np.ndarray:
    return both_NXR[:, mixer.nope_dim :].swapaxes(1, 2)


def _of_each_head(
    part: Callable[[np.ndarray, LatentSpec], np.ndarray],
) -> Callable[[np.ndarray, ModelConfig, int], np.ndarray]:
    def transform(tensor: np.ndarray, config: ModelConfig, layer: int) -> np.ndarray:
        mixer = config.layers[layer].latent
        shape = (mixer.num_heads, mixer.nope_dim + mixer.value_dim, mixer.kv_rank)
        return part(tensor.reshape(shape), mixer)

    return transform
