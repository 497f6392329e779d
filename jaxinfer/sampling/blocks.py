"""Rows of the vocabulary seen as blocks: first which block, then which of its elements.

A search over all V columns of a row costs many times a plain reduction; reducing to one value a
block and searching among the blocks costs little more than reading the row once. The last block is
shorter where the block size does not divide V.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

BLOCK = 512
#: Searching for the best few reads whole blocks, so smaller ones are cheaper there.
TOP_BLOCK = 64


def reduce_blocks(
    x_SV: jax.Array, reduce: Callable[..., jax.Array], size: int = BLOCK
) -> jax.Array:
    """``[S, ceil(V / size)]``: ``reduce`` (``jnp.max``, ``jnp.sum``) of each block."""
    rows, width = x_SV.shape
    num_whole = width // size
    parts = []
    if num_whole:
        whole = x_SV[:, : num_whole * size].reshape(rows, num_whole, size)
        parts.append(reduce(whole, axis=-1))
    if width % size:
        parts.append(reduce(x_SV[:, num_whole * size :], axis=-1, keepdims=True))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)


def read_blocks(
    x_SV: jax.Array, blocks_SJ: jax.Array, fill: float, size: int = BLOCK
) -> tuple[jax.Array, jax.Array]:
    """The values of J blocks of each row, and their ids: ``[S, J, min(size, V)]`` both.

    A window that would leave the row starts earlier; what it holds of the block before is ``fill``.
    """
    width = x_SV.shape[1]
    starts_SJ = blocks_SJ * size
    offsets = jnp.arange(min(size, width), dtype=jnp.int32)
    window_starts_SJ = jnp.minimum(starts_SJ, width - min(size, width))
    ids = window_starts_SJ[:, :, None] + offsets[None, None, :]
    flat_ids = ids.reshape(ids.shape[0], -1)
    values = jnp.take_along_axis(x_SV, flat_ids, axis=1).reshape(ids.shape)
    return jnp.where(ids >= starts_SJ[:, :, None], values, jnp.float32(fill)), ids


def argmax(x_SV: jax.Array, block_max_SB: jax.Array) -> jax.Array:
    """int32 ``[S]``: the first index of each row's maximum, given each block's.

    Always an index of the row, whatever the row holds.
    """
    block_S1 = jnp.argmax(block_max_SB, axis=-1, keepdims=True).astype(jnp.int32)
    values_S1b, ids_S1b = read_blocks(x_SV, block_S1, fill=-jnp.inf)
    place_S1 = jnp.argmax(values_S1b[:, 0], axis=-1, keepdims=True)
    return jnp.take_along_axis(ids_S1b[:, 0], place_S1, axis=1)[:, 0]


def top(x_SV: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The ``k`` largest values of each row, descending, and their ids; equal ones by id.

    Exact: whatever is among the best k lies in one of the k blocks with the largest maxima. Where
    the row is shorter than ``k``, the rest is ``-inf`` and id 0.
    """
    block_max = reduce_blocks(x_SV, jnp.max, TOP_BLOCK)
    _, blocks = lax.top_k(block_max, min(k, block_max.shape[1]))
    # Among equal values the first wins, so the blocks must stand in the order of their ids.
    values, ids = read_blocks(x_SV, jnp.sort(blocks, axis=-1), fill=-jnp.inf, size=TOP_BLOCK)
    values, ids = (array.reshape(array.shape[0], -1) for array in (values, ids))
    # Values are read through their places: a top-k whose places nobody uses becomes a full sort.
    _, places = lax.top_k(values, min(k, values.shape[1]))
    best = jnp.take_along_axis(values, places, axis=1)
    best_ids = jnp.where(best > -jnp.inf, jnp.take_along_axis(ids, places, axis=1), 0)
    missing = ((0, 0), (0, k - best.shape[1]))
    return jnp.pad(best, missing, constant_values=-jnp.inf), jnp.pad(best_ids, missing)
