"""Work on a few rows of the batch at a time, and only where a row wants it."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxinfer.shapes import Tree

#: Few enough rows of a vocabulary to stay in the cache of a CPU from pass to pass. It also keeps
#: the temporaries of sampling the same for any number of slots, where rows are taken in a loop.
ROWS_AT_ONCE = 16


def map_rows(
    function: Callable[[jax.Array, Tree], Tree],
    wanted_S: jax.Array,
    operands: Tree,
    default: Tree,
    *,
    rows_at_once: int | None = ROWS_AT_ONCE,
) -> Tree:
    """``function(wanted_R, operands_R)`` for the rows that are wanted, ``default`` for the others.

    Args:
        function: Maps rows to rows, each by itself. It is called for R neighbouring rows of which
            any is wanted; what it returns for the others is dropped.
        wanted_S: Bool.
        operands: Arrays with S rows.
        default: Arrays with S rows, in the structure that ``function`` returns.
        rows_at_once: R; None for all of them, without a loop. Temporaries are of so many rows.
    """
    num_slots = wanted_S.shape[0]
    num_rows = min(rows_at_once or num_slots, num_slots)

    def do_chunk(chunk: jax.Array, result: Tree) -> Tree:
        # The last chunk overlaps the one before where R does not divide S: the same rows again.
        start = jnp.minimum(chunk * num_rows, num_slots - num_rows)

        def take(array: jax.Array) -> jax.Array:
            return lax.dynamic_slice_in_dim(array, start, num_rows)

        def put(array: jax.Array, fresh: jax.Array) -> jax.Array:
            is_wanted = lax.expand_dims(take(wanted_S), range(1, array.ndim))
            kept = jnp.where(is_wanted, fresh, take(array))
            return lax.dynamic_update_slice_in_dim(array, kept, start, axis=0)

        def update() -> Tree:
            fresh = function(take(wanted_S), jax.tree.map(take, operands))
            return jax.tree.map(put, result, fresh)

        return lax.cond(jnp.any(take(wanted_S)), update, lambda: result)

    if num_rows == num_slots:
        return do_chunk(jnp.int32(0), default)
    return lax.fori_loop(0, -(-num_slots // num_rows), do_chunk, default)
