"""The order of work of a TPU kernel, worked out before it starts: who comes when, from where.

A kernel copies whole registers, and a row's first new position may stand anywhere in one; so may
its first query, where the heads of a token do not fill registers. What may is first laid out anew:
every row begins on a border of its own. All of this is integers; no layer enters, and XLA computes
it once for all layers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.nonnegative import count_ends, divide, divide_up, take
from pallas_kernels.paging.rows import Rows
from pallas_kernels.paging.tpu_registers import LANES, align


class Order(NamedTuple):
    """Rows in the order of work, short ones first; what lies beyond ``num_rows`` means nothing.

    ``counts``: short rows, all rows. A row's queries begin at token ``q_start`` of the new layout.
    ``first_token_S``: where they begin in the old one. ``source_t``: the token that stands at each
    place, ``place_T``: the inverse; both are in range also where there is none.
    """

    counts_2: jax.Array
    slot_S: jax.Array
    q_start_S: jax.Array
    q_len_S: jax.Array
    kv_len_S: jax.Array
    first_token_S: jax.Array
    source_t: jax.Array
    place_T: jax.Array


class NewTiles(NamedTuple):
    """New positions in tiles of as many as a register has rows.

    ``start_S`` (in the order of work): where the tile of a row's first new position begins among
    the ``source_t``. The writes are a list of ``count_1`` tiles: ``from_W`` to row ``row_W`` of
    page ``page_W``, of which positions ``first_W`` to ``last_W`` (excluded) are new.
    """

    start_S: jax.Array
    source_t: jax.Array
    count_1: jax.Array
    from_W: jax.Array
    page_W: jax.Array
    row_W: jax.Array
    first_W: jax.Array
    last_W: jax.Array

    @property
    def writes(self) -> tuple[jax.Array, ...]:
        """The list of writes, in the order in which ``write_tiles`` names its arrays."""
        return (self.count_1, self.from_W, self.page_W, self.row_W, self.first_W, self.last_W)


def order_rows(rows: Rows, *, unit: int, num_places: int, has_short: bool = True) -> Order:
    """Rows begin at multiples of ``unit`` tokens; rows of at most ``unit`` tokens are short, unless
    the program has no part for these."""
    is_row_S = rows.q_lens_S > 0
    is_short_S = is_row_S & (rows.q_lens_S <= (unit if has_short else 0))
    # Short rows first, then long ones, then idle slots; each kind as it came.
    kind_S = jnp.where(is_short_S, 0, jnp.where(is_row_S, 1, 2)).astype(jnp.int32)
    slot_S = jnp.argsort(kind_S, stable=True).astype(jnp.int32)
    q_len_S = take(rows.q_lens_S, slot_S)
    units_S = divide_up(q_len_S, unit)
    q_start_S = (jnp.cumsum(units_S, dtype=jnp.int32) - units_S) * jnp.int32(unit)
    first_token_S = take(rows.q_starts_S, slot_S)
    num_short, num_rows = is_short_S.sum(dtype=jnp.int32), is_row_S.sum(dtype=jnp.int32)
    long_rank_S = num_short + jnp.cumsum(is_row_S & ~is_short_S, dtype=jnp.int32)
    rank_S = jnp.where(is_short_S, jnp.cumsum(is_short_S, dtype=jnp.int32), long_rank_S) - 1
    rank_T = take(rank_S, rows.row_T)
    place_T = jnp.arange(rows.row_T.size, dtype=jnp.int32) + take(q_start_S - first_token_S, rank_T)
    return Order(
        counts_2=jnp.stack([num_short, num_rows]),
        slot_S=slot_S,
        q_start_S=q_start_S,
        q_len_S=q_len_S,
        kv_len_S=take(rows.kv_lens_S, slot_S),
        first_token_S=first_token_S,
        source_t=_sources(q_start_S, q_len_S, first_token_S, num_places),
        place_T=jnp.where(rows.is_token_T, place_T, 0),
    )


def tile_new_positions(
    rows: Rows, order: Order, *, page_size: int, tile: int, margin: int
) -> NewTiles:
    """Tiles of ``tile`` positions, with ``margin`` places of nothing before and after them."""
    num_tokens, num_slots = rows.row_T.size, rows.q_lens_S.size
    # A row's new positions touch one tile more than their number asks for, and one at each end.
    num_tiles = min(num_tokens, -(-num_tokens // tile) + 2 * num_slots)
    first_new_S = order.kv_len_S - order.q_len_S
    first_tile_S = divide(first_new_S, tile)
    is_row_S = order.q_len_S > 0
    tiles_S = jnp.where(is_row_S, divide_up(order.kv_len_S, tile) - first_tile_S, 0)
    ends_S = jnp.cumsum(tiles_S, dtype=jnp.int32)
    start_S = jnp.int32(margin) + (ends_S - tiles_S) * jnp.int32(tile)

    skipped_S = first_new_S - first_tile_S * jnp.int32(tile)
    tile_W = jnp.arange(num_tiles, dtype=jnp.int32)
    row_W = count_ends(ends_S, tile_W)
    is_tile_W = row_W < tiles_S.size
    nth_W = tile_W - (take(ends_S, row_W) - take(tiles_S, row_W))
    position_W = (take(first_tile_S, row_W) + nth_W) * jnp.int32(tile)
    position_W = jnp.where(is_tile_W, position_W, 0)
    page_W = take(rows.page_table_SM, take(order.slot_S, row_W), divide(position_W, page_size))
    is_written_W = is_tile_W & (page_W > 0)
    num_places = num_tiles * tile + 2 * margin
    written_W = jnp.argsort(~is_written_W, stable=True).astype(jnp.int32)
    first_W = jnp.maximum(take(first_new_S, row_W) - position_W, 0)
    last_W = jnp.minimum(take(order.kv_len_S, row_W) - position_W, tile)
    return NewTiles(
        start_S=start_S,
        source_t=_sources(start_S + skipped_S, order.q_len_S, order.first_token_S, num_places),
        count_1=is_written_W.sum(dtype=jnp.int32)[None],
        from_W=jnp.int32(margin) + written_W * jnp.int32(tile),
        page_W=take(page_W, written_W),
        row_W=take(jax.lax.rem(position_W, jnp.int32(page_size)), written_W),
        first_W=take(first_W, written_W),
        last_W=take(last_W, written_W),
    )


def _sources(
    start_S: jax.Array, q_len_S: jax.Array, first_token_S: jax.Array, num_places: int
) -> jax.Array:
    """The token at each place if rows begin at ``start_S``, and some token where there is none.

    Found by looking, not by scattering: the chip would have to take turns.
    """
    place_t = jnp.arange(num_places, dtype=jnp.int32)
    has_begun_tS = (start_S[None, :] <= place_t[:, None]) & (q_len_S[None, :] > 0)
    row_t = jnp.maximum(has_begun_tS.sum(axis=1, dtype=jnp.int32) - 1, 0)
    return jnp.maximum(place_t + take(first_token_S - start_S, row_t), 0)


def rows_of_table(page_table_SM: jax.Array) -> jax.Array:
    """``[S, M / 128, 128]``: a row's pages are one run of memory, copied when its turn comes."""
    num_slots, pages_per_row = page_table_SM.shape
    padding = align(pages_per_row, LANES) - pages_per_row
    return jnp.pad(page_table_SM, ((0, 0), (0, padding))).reshape(num_slots, -1, LANES)
