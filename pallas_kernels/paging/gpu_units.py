"""Units of work of the Hopper kernels: items of ``gpu_work.py``, once for each group of heads."""

from collections.abc import Callable
from typing import Any

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

FIELDS = ("out", "query", "row", "first_block", "num_blocks", "position", "kv_len", "is_whole")
"""Columns of the array of items; ``position`` is that of the first query."""

Item = dict[str, jax.Array]
"""The numbers of one item, by the names of ``FIELDS``."""


def for_each_unit(
    num_items_1: Any,
    items_I8: Any,
    num_groups: int,
    num_blocks: int,
    take: Callable[[jax.Array, Item, jax.Array, jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """``step = take(count, item, group, step)`` for all units of this block of the grid, which has
    ``num_blocks`` that take turns.

    ``count`` counts the units, ``step`` the blocks of positions of all units so far. Returns both.
    """
    me = jax.lax.axis_index("block")
    num_units = share_of(me, num_items_1[0] * num_groups, num_blocks)

    def take_unit(count: jax.Array, step: jax.Array) -> jax.Array:
        unit = nth_unit(me, count, num_blocks)
        index = jax.lax.div(unit, jnp.int32(num_groups))
        item = {name: items_I8[index, field] for field, name in enumerate(FIELDS)}
        return take(count, item, jax.lax.rem(unit, jnp.int32(num_groups)), step)

    return num_units, jax.lax.fori_loop(0, num_units, take_unit, jnp.int32(0))


def nth_unit(me: jax.Array, count: jax.Array, num_blocks: int) -> jax.Array:
    """The unit that block ``me`` takes after ``count`` others: every second round goes backwards.

    Long units come first (``gpu_work``): who had the longest of one has the shortest of the next.
    """
    place = jnp.where((count & 1) == 0, me, num_blocks - 1 - me)
    return count * num_blocks + place


def share_of(me: jax.Array, num_units: jax.Array, num_blocks: int) -> jax.Array:
    """How many of the units block ``me`` takes."""
    rounds = jax.lax.div(num_units, jnp.int32(num_blocks))
    return rounds + (nth_unit(me, rounds, num_blocks) < num_units).astype(jnp.int32)


def in_tile_layout(x: jax.Array, *, interpret: bool) -> jax.Array:
    """``x [rows, columns]``, or one number a row, spread over threads as WGMMA does it.

    The inference of layouts needs these hints; the interpreter does not know them.
    """
    if interpret:
        return x
    layout = plgpu.Layout.WGMMA
    return plgpu.layout_cast(x, layout if x.ndim == 2 else layout.reduce(1))


def along_rows(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """One number a row as an array of ``shape``."""
    return jax.lax.broadcast_in_dim(x, shape, [0])


def owned_end(page_table_SM: Any, page_size: int, item: Item, place: jax.Array) -> jax.Array:
    """The end of what may be seen of the block at ``place``: that of its row, or 0 in a hole.

    It and all behind it may hold NaN. Only a row with holes looks up whether somebody owns the
    page.
    """

    def end() -> jax.Array:
        page = page_table_SM[item["row"], jax.lax.div(place, jnp.int32(page_size))]
        return jnp.where(page > 0, item["kv_len"], 0)

    return jax.lax.cond(item["is_whole"] > 0, lambda: item["kv_len"], end)
