"""A softmax average that is built block by block, so that the order of work leaves no trace.

The running maximum (online softmax, arXiv 1805.02867) is rounded up to a power of two. Bringing
sums to a new maximum then multiplies them by a power of two, which is exact: a row's result does
not depend on which of its blocks were added in one step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453
NO_TOP = -1e30
"""The exponent of a softmax that has seen nothing."""


class Softmax(NamedTuple):
    """Sums over the positions seen so far, all divided by ``2 ** top``; leading axes are free.

    ``top [...]`` is a whole number in float32. ``sums [..., H + 1]`` holds the sum of ``exp(logit)
    * value`` and, as its last column, the sum of ``exp(logit)``: one array, because every update of
    an array is a kernel of its own.
    """

    top: jax.Array
    sums: jax.Array


def begin(shape: tuple[int, ...], head_dim: int, sinks: jax.Array | None) -> Softmax:
    """A softmax that has seen nothing, or its sink only; ``sinks`` broadcasts to ``shape``."""
    if sinks is None:
        no_sums = jnp.zeros((*shape, head_dim + 1), jnp.float32)
        return Softmax(jnp.full(shape, NO_TOP, jnp.float32), no_sums)
    sinks = jnp.broadcast_to(sinks, shape)
    top = top_of(sinks)
    no_values = jnp.zeros((*shape, head_dim), jnp.float32)
    return Softmax(top, join(no_values, weights_of(sinks, top)))


def join(values: jax.Array, total: jax.Array) -> jax.Array:
    """The ``sums`` of a Softmax."""
    return jnp.concatenate([values, total[..., None]], axis=-1)


def finish(softmax: Softmax) -> jax.Array:
    """The average: weighted values over the sum of weights, 0 where nothing was seen."""
    values, total = softmax.sums[..., :-1], softmax.sums[..., -1:]
    return values / jnp.where(total > 0, total, 1.0)


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


def add_items(old: Softmax, slot_W: jax.Array, is_first_W: jax.Array, item: Softmax) -> Softmax:
    """Adds ``item`` w to row ``slot_W[w]`` of ``old``, in their order.

    Items of one row are neighbours, and ``is_first_W`` marks the first of each in this call. A slot
    beyond the rows is dropped.
    """
    columns = (1,) * (old.top.ndim - 1)
    slots: dict[str, Any] = {"mode": "drop", "wrap_negative_indices": False}
    read: dict[str, Any] = {"mode": "clip", "wrap_negative_indices": False}
    top = old.top.at[slot_W].max(item.top, **slots)
    top_W = top.at[slot_W].get(**read)
    decay_W = power_of_two(old.top.at[slot_W].get(**read) - top_W)
    decay_W = jnp.where(is_first_W.reshape(-1, *columns), decay_W, 1.0)
    decay_W = jnp.broadcast_to(decay_W[..., None], item.sums.shape)
    added_W = item.sums * power_of_two(item.top - top_W)[..., None]
    sums = old.sums.at[slot_W].multiply(decay_W, **slots).at[slot_W].add(added_W, **slots)
    return Softmax(top, sums)
