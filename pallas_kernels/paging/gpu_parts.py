"""Averages over parts of what a query sees, as a Hopper kernel returns them, joined to one.

The parts of a row that is split (FlashDecoding) are such, and whatever else was attended to apart.
"""

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.paging.softmax import NO_TOP


class Average(NamedTuple):
    """The average ``out [..., H]`` over what was seen, and the binary logarithm ``lse [...]`` of
    the sum of its weights: very negative where nothing was seen, and the average zero."""

    out: jax.Array
    lse: jax.Array


def join(out_XnYH: jax.Array, lse_XnY: jax.Array, sinks_Y: jax.Array | None = None) -> Average:
    """One average of n, in float32; Y may be any axes. A part with ``lse = -inf`` does not count.

    ``sinks_Y``: logits in powers of two that join the weights only. The parts are few, and are told
    apart one by one: reductions would be up to five kernels, each waiting for the one before it.
    """
    parts = range(lse_XnY.shape[1])
    top_XY = functools.reduce(jnp.maximum, [lse_XnY[:, n] for n in parts], jnp.float32(NO_TOP))
    if sinks_Y is not None:
        top_XY = jnp.maximum(top_XY, sinks_Y[None])
    weights = [jnp.exp2(lse_XnY[:, n] - top_XY) for n in parts]
    total_XY = functools.reduce(operator.add, weights)
    if sinks_Y is not None:
        total_XY += jnp.exp2(sinks_Y[None] - top_XY)
    weighted = [weights[n][..., None] * out_XnYH[:, n].astype(jnp.float32) for n in parts]
    out_XYH = functools.reduce(operator.add, weighted)
    out_XYH = out_XYH / jnp.where(total_XY > 0, total_XY, 1.0)[..., None]
    return Average(out_XYH, top_XY + jnp.log2(jnp.maximum(total_XY, 1.0)))


def join_splits(
    out_SnYH: jax.Array,
    lse_SnY: jax.Array,
    num_splits_S: jax.Array,
    sinks_Y: jax.Array | None = None,
) -> Average:
    """``join`` of the first ``num_splits_S`` parts of each row. The others were not written."""
    is_part_Sn = jnp.arange(lse_SnY.shape[1], dtype=jnp.int32)[None, :] < num_splits_S[:, None]

    def where_part(x: jax.Array, other: float) -> jax.Array:
        return jnp.where(jnp.expand_dims(is_part_Sn, tuple(range(2, x.ndim))), x, other)

    lse_SnY = where_part(lse_SnY, -jnp.inf)
    return join(where_part(out_SnYH, 0.0), lse_SnY, sinks_Y)
