"""A softmax average that is built block by block, so that the order of work leaves no trace.

The running maximum (online softmax, arXiv 1805.02867) is rounded up to a power of two. Bringing sums to
a new maximum then multiplies them by a power of two, which is exact: a row's result does not depend on
which of its blocks were added in one step.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453
NO_TOP = -1e30
"""The exponent of a softmax that has seen nothing."""


class Softmax(NamedTuple):
    """Sums over the positions seen so far, all divided by ``2 ** top``; leading axes are free.

    ``top [...]`` a whole number in float32, ``total [...]`` the sum of ``exp(logit)``, ``values
    [..., H]`` the sum of ``exp(logit) * value``.
    """

    top: jax.Array
    total: jax.Array
    values: jax.Array


def begin(shape: tuple[int, ...], head_dim: int, sinks: jax.Array | None) -> Softmax:
    """A softmax that has seen nothing, or its sink only; ``sinks`` broadcasts to ``shape``."""
    values = jnp.zeros((*shape, head_dim), jnp.float32)
    if sinks is None:
        return Softmax(jnp.full(shape, NO_TOP, jnp.float32), jnp.zeros(shape, jnp.float32), values)
    sinks = jnp.broadcast_to(sinks, shape)
    top = top_of(sinks)
    return Softmax(top, jnp.exp(sinks - top * jnp.float32(LN_2)), values)


def finish(softmax: Softmax) -> jax.Array:
    """The average: weighted values over the sum of weights, 0 where nothing was seen."""
    return softmax.values / jnp.where(softmax.total > 0, softmax.total, 1.0)[..., None]


def top_of(logit: jax.Array) -> jax.Array:
    """The least whole ``top`` with ``2 ** top >= exp(logit)``."""
    return jnp.maximum(jnp.ceil(logit * jnp.float32(LOG2_E)), jnp.float32(NO_TOP))


def weights_of(logits: jax.Array, top: jax.Array) -> jax.Array:
    """``exp(logits) / 2 ** top``; ``top`` lacks the last axes of ``logits``."""
    top = top.reshape(*top.shape, *(1 for _ in range(logits.ndim - top.ndim)))
    return jnp.exp(logits - top * jnp.float32(LN_2))


def power_of_two(exponent: jax.Array) -> jax.Array:
    """Exactly ``2 ** exponent`` for a whole ``exponent <= 0``; 0 where that underflows."""
    bits = (jnp.maximum(exponent, -127.0).astype(jnp.int32) + 127) << 23
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def add_items(old: Softmax, slot_W: jax.Array, item: Softmax) -> Softmax:
    """Adds ``item`` w to row ``slot_W[w]`` of ``old``, in their order.

    Items of one row must be neighbours. A slot beyond the rows is dropped.
    """
    is_first_W = jnp.concatenate([jnp.ones(1, jnp.bool_), slot_W[1:] != slot_W[:-1]])
    top = old.top.at[slot_W].max(item.top, mode="drop")
    top_W = top.at[slot_W].get(mode="clip")
    decay_W = power_of_two(old.top.at[slot_W].get(mode="clip") - top_W)
    decay_W = jnp.where(is_first_W.reshape(-1, *(1 for _ in top.shape[1:])), decay_W, 1.0)
    weight_W = power_of_two(item.top - top_W)

    def add(sums: jax.Array, decay_W: jax.Array, new_W: jax.Array) -> jax.Array:
        decay_W = jnp.broadcast_to(decay_W, new_W.shape)
        return sums.at[slot_W].multiply(decay_W, mode="drop").at[slot_W].add(new_W, mode="drop")

    return Softmax(
        top,
        add(old.total, decay_W, weight_W * item.total),
        add(old.values, decay_W[..., None], weight_W[..., None] * item.values),
    )
