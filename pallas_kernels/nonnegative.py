"""Arithmetic and look-ups for what is never negative, in one operation each.

Python's notation spells out ten to be right for negative numbers as well. A layer has hundreds of
operations, and all of them take time to compile.
"""

import jax
import jax.numpy as jnp


def take(array: jax.Array, *index: jax.Array) -> jax.Array:
    """``array[index]``; beyond the end it takes the last."""
    return array.at[index].get(mode="clip", wrap_negative_indices=False)


def divide(x: jax.Array, y: int) -> jax.Array:
    """``x // y``."""
    return jax.lax.div(x, jnp.int32(y))


def divide_up(x: jax.Array, y: int) -> jax.Array:
    """``x / y`` rounded up."""
    return divide(x + jnp.int32(y - 1), y)


def count_ends(ends_S: jax.Array, index_I: jax.Array) -> jax.Array:
    """How many of the rising ``ends_S`` are not above each index: the row the index falls in."""
    return (ends_S[None, :] <= index_I[:, None]).sum(axis=1, dtype=jnp.int32)
