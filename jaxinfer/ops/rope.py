"""Rotary position embedding (arXiv 2104.09864) and the ways to stretch it beyond its training.

The frequencies are numpy, worked out once when the model is built. Scalings that depend on the
length (``dynamic``, ``longrope``) are settled by the longest context served, ``max_len``, not by
the length of the moment: keys in the cache are rotated already, and pages are shared between
sequences, so one model uses one set of frequencies.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer.config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongropeScaling,
    ProportionalScaling,
    RopeSpec,
    YarnScaling,
)


@dataclass(frozen=True)
class RopeTable:
    """Cosines and sines of the step's positions, float32 ``[T, rotary_dim / 2]``."""

    cos_Th: jax.Array
    sin_Th: jax.Array


jax.tree_util.register_dataclass(RopeTable, ["cos_Th", "sin_Th"], [])


def frequencies(spec: RopeSpec, max_len: int) -> tuple[np.ndarray, float]:
    """Radians a position, float64 ``[rotary_dim / 2]``, and the factor on cosines and sines."""
    plain = _inverse_powers(spec.theta, spec.rotary_dim)
    match spec.scaling:
        case None:
            return plain, 1.0
        case LinearScaling(factor=factor):
            return plain / factor, 1.0
        case DynamicScaling() as scaling:
            return _dynamic(spec, scaling, max_len), 1.0
        case Llama3Scaling() as scaling:
            return _llama3(plain, scaling), 1.0
        case YarnScaling() as scaling:
            return _yarn(spec, plain, scaling), _yarn_attention_factor(scaling)
        case LongropeScaling() as scaling:
            is_long = max_len > scaling.original_len
            divisors = scaling.long_factor if is_long else scaling.short_factor
            factor = _longrope_attention_factor(scaling, is_long)
            return plain / np.asarray(divisors, np.float64), factor
        case ProportionalScaling(share=share, factor=factor):
            turning = np.arange(plain.size) < int(share * spec.rotary_dim // 2)
            return np.where(turning, plain / factor, 0.0), 1.0


def rope_table(spec: RopeSpec, max_len: int, positions_T: jax.Array) -> RopeTable:
    """The angles of ``positions_T`` (int32 ``[T]``) for one rotary spec."""
    radians_h, factor = frequencies(spec, max_len)

    def table(positions_T: jax.Array) -> RopeTable:
        angles_Th = positions_T.astype(jnp.float32)[:, None] * jnp.asarray(
            radians_h[None, :], jnp.float32
        )
        scale = jnp.float32(factor)
        return RopeTable(jnp.cos(angles_Th) * scale, jnp.sin(angles_Th) * scale)

    def table_behind_a_branch(positions_T: jax.Array) -> RopeTable:
        # XLA:CPU takes cosines to be cheap, and would compute them anew in every layer.
        return lax.cond(positions_T[0] >= 0, table, lambda x: table(x * 0), positions_T)

    with jax.named_scope("rope_table"):
        return lax.platform_dependent(positions_T, cpu=table_behind_a_branch, default=table)


def rotate(spec: RopeSpec, table: RopeTable, x_TNH: jax.Array) -> jax.Array:
    """Rotates the first ``rotary_dim`` of every head; the result has ``x``'s dtype."""
    with jax.named_scope("rope"):
        cos, sin = table.cos_Th[:, None, :], table.sin_Th[:, None, :]
        turning = x_TNH[..., : spec.rotary_dim].astype(jnp.float32)
        if spec.interleaved:
            a, b = turning[..., 0::2], turning[..., 1::2]
            pairs = (a * cos - b * sin, b * cos + a * sin)
            turned = jnp.stack(pairs, axis=-1).reshape(turning.shape)
        else:
            a, b = jnp.split(turning, 2, axis=-1)
            turned = jnp.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1)
        turned = turned.astype(x_TNH.dtype)
        if spec.rotary_dim == x_TNH.shape[-1]:
            return turned
        return jnp.concatenate((turned, x_TNH[..., spec.rotary_dim :]), axis=-1)


def _inverse_powers(theta: float, rotary_dim: int) -> np.ndarray:
    return theta ** -(np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)


def _dynamic(spec: RopeSpec, scaling: DynamicScaling, max_len: int) -> np.ndarray:
    length = max(max_len, scaling.original_len)
    stretch = scaling.factor * length / scaling.original_len - (scaling.factor - 1)
    theta = spec.theta * stretch ** (spec.rotary_dim / (spec.rotary_dim - 2))
    return _inverse_powers(theta, spec.rotary_dim)


def _llama3(plain: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
    turns = scaling.original_len * plain / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0) if low < high else turns > low
    return keep * plain + (1 - keep) * plain / scaling.factor


def _yarn(spec: RopeSpec, plain: np.ndarray, scaling: YarnScaling) -> np.ndarray:
    def dim_that_turns(turns: float) -> float:
        wavelength_ratio = scaling.original_len / (turns * 2 * math.pi)
        return spec.rotary_dim * math.log(wavelength_ratio) / (2 * math.log(spec.theta))

    low, high = dim_that_turns(scaling.beta_fast), dim_that_turns(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.rotary_dim - 1)
    width = max(high - low, 0.001)
    ramp = np.clip((np.arange(spec.rotary_dim // 2) - low) / width, 0.0, 1.0)
    return (1 - ramp) * plain + ramp * plain / scaling.factor


def _yarn_attention_factor(scaling: YarnScaling) -> float:
    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return mscale(scaling.mscale) / mscale(scaling.mscale_all_dim)
    return mscale(1.0)


def _longrope_attention_factor(scaling: LongropeScaling, is_long: bool) -> float:
    if is_long and scaling.long_attention_factor is not None:
        return scaling.long_attention_factor
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.factor <= 1:
        return 1.0
    return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_len))
