"""Which rows belong to which group, and the list of tiles of rows that a kernel walks over."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.nonnegative import count_ends, divide, divide_up, take


def group_ends(group_sizes_E: jax.Array, num_rows: int) -> jax.Array:
    """The row after the last one of each group, whatever the sizes are.

    A negative size counts as 0. Where the sum exceeds the rows that there are, the groups that come
    last get fewer rows, or none.
    """
    clamped_E = jnp.clip(group_sizes_E, 0, num_rows)
    return jnp.minimum(jnp.cumsum(clamped_E, dtype=jnp.int32), num_rows)


class Visits(NamedTuple):
    """Pairs of a group and a tile of rows which holds rows of it, in the order of the rows.

    Only the first ``count_1[0]`` mean anything. ``row_V`` is the first row of the tile; of its rows
    the group owns those from ``start_V`` to before ``end_V``. Group E is the padding.
    """

    count_1: jax.Array
    group_V: jax.Array
    row_V: jax.Array
    start_V: jax.Array
    end_V: jax.Array


def list_visits(
    group_sizes_E: jax.Array, num_rows: int, tile: int, *, align: int, has_padding: bool
) -> Visits:
    """The visits of all groups that are not empty, by counting and looking, without a scatter.

    A group's tiles start at the multiple of ``align`` at or before its first row. Where this is
    ``tile``, groups share tiles, and one that holds a border is visited once for each of its
    groups. ``has_padding``: what is behind the groups is visited like one of them; but of tiles
    that are shared, only those which no group visits.
    """
    end_E = group_ends(group_sizes_E, num_rows)
    ends = [end_E]
    if has_padding:
        ends.append(jnp.full(1, num_rows, jnp.int32))
    end_G = jnp.concatenate(ends)
    start_G = jnp.concatenate([jnp.zeros(1, jnp.int32), end_G[:-1]])
    first_G = divide(start_G, align) * align
    if align == tile and has_padding:
        first_padding = divide_up(end_E[-1:], tile) * tile
        first_G = jnp.concatenate([first_G[:-1], first_padding])
    num_G = divide_up(end_G - first_G, tile)
    num_G = jnp.where(end_G > start_G, num_G, 0)
    last_G = jnp.cumsum(num_G, dtype=jnp.int32)

    # Each visit has a row of its own. A group has at most one tile that is not full of its rows,
    # or, of tiles that are not shared, one more where its first tile starts before it does.
    before = max(align - 2, 0) * end_G.size if align < tile else 0
    num_visits = min(num_rows, (num_rows + before) // tile + end_G.size)
    nth_V = jnp.arange(num_visits, dtype=jnp.int32)
    group_V = count_ends(last_G, nth_V)
    nth_of_group_V = nth_V - take(last_G - num_G, group_V)
    return Visits(
        count_1=last_G[-1:],
        group_V=jnp.minimum(group_V, end_G.size - 1),
        row_V=take(first_G, group_V) + nth_of_group_V * tile,
        start_V=take(start_G, group_V),
        end_V=take(end_G, group_V),
    )
