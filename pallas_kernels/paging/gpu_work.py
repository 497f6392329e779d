"""What a Hopper kernel has to do, listed in plain XLA: items, and how queries become tiles.

No layer enters the lists, so XLA computes them once for all layers of a program.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from pallas_kernels.nonnegative import count_ends, divide, divide_up, take
from pallas_kernels.paging.gpu_units import FIELDS
from pallas_kernels.paging.options import Options
from pallas_kernels.paging.rows import Rows


class Sizes(Protocol):
    """What the lists depend on, among the tile sizes of a kernel."""

    @property
    def block(self) -> int:
        """Positions that a step takes."""

    @property
    def min_split(self) -> int:
        """Blocks that a part of a split row has at least."""

    @property
    def splits(self) -> tuple[int, int]:
        """The least and the largest number of parts that a row may be split into."""

    @property
    def wanted_units(self) -> int:
        """Units of work that keep the whole chip busy."""


class Work(NamedTuple):
    """The items of one launch, the longest first: ``items_I8`` has the columns
    ``gpu_units.FIELDS``."""

    num_items_1: jax.Array
    items_I8: jax.Array


def max_splits(tiles: Sizes, num_slots: int, num_groups: int, num_positions: int) -> int:
    """The parts that a row may have, by the static sizes of a program.

    What a row is split into depends on its own length and this only: never on its neighbours.
    """
    least, largest = tiles.splits
    wanted = -(-tiles.wanted_units // (num_slots * num_groups))
    return min(max(wanted, least), largest, -(-num_positions // (tiles.min_split * tiles.block)))


def num_splits(
    tiles: Sizes, options: Options, rows: Rows, is_single_S: jax.Array, splits: int
) -> jax.Array:
    """The parts of each row with one new token; 0 for all others."""
    first_S = _first_block(tiles, options, rows.kv_lens_S - 1)
    num_blocks_S = divide_up(rows.kv_lens_S, tiles.block) - first_S
    wanted_S = jnp.clip(divide_up(num_blocks_S, tiles.min_split), 1, splits)
    return jnp.where(is_single_S, wanted_S, 0)


def list_splits(
    tiles: Sizes,
    options: Options,
    rows: Rows,
    page_size: int,
    num_splits_S: jax.Array,
    splits: int,
) -> Work:
    """One item for each part of a row; part n of row s has out ``s * splits + n``."""
    num_slots = rows.q_lens_S.size
    ends_S = jnp.cumsum(num_splits_S, dtype=jnp.int32)
    item_I = jnp.arange(num_slots * splits, dtype=jnp.int32)
    row_I = jnp.minimum(count_ends(ends_S, item_I), num_slots - 1)
    split_I = item_I - take(ends_S - num_splits_S, row_I)
    position_I = take(rows.kv_lens_S, row_I) - 1
    first_I = _first_block(tiles, options, position_I)
    num_blocks_I = divide_up(position_I + 1, tiles.block) - first_I
    count_I = jnp.maximum(take(num_splits_S, row_I), 1)
    start_I = jax.lax.div(num_blocks_I * split_I, count_I)
    end_I = jax.lax.div(num_blocks_I * (split_I + 1), count_I)
    return _work(
        ends_S[-1],
        rows,
        page_size,
        row_I,
        out=row_I * splits + split_I,
        query=row_I,
        first_block=first_I + start_I,
        num_blocks=end_I - start_I,
        position=position_I,
    )


class Tiles(NamedTuple):
    """The tiles of rows with several new tokens: J of them at most."""

    work: Work
    token_Jt: jax.Array
    tile_T: jax.Array
    lane_T: jax.Array


def list_tiles(
    tiles: Sizes,
    options: Options,
    rows: Rows,
    page_size: int,
    is_tiled_S: jax.Array,
    tile_queries: int,
) -> Tiles:
    """Rows cut into tiles of ``tile_queries`` tokens; tile j has query tile and out j.

    ``token_Jt`` are the tokens of each tile, ``tile_T`` and ``lane_T`` where each token is.
    """
    num_tokens, num_slots = rows.row_T.size, rows.q_lens_S.size
    num_tiles_S = jnp.where(is_tiled_S, divide_up(rows.q_lens_S, tile_queries), 0)
    ends_S = jnp.cumsum(num_tiles_S, dtype=jnp.int32)
    starts_S = ends_S - num_tiles_S
    tile_J = jnp.arange(-(-num_tokens // tile_queries) + num_slots, dtype=jnp.int32)
    row_J = jnp.minimum(count_ends(ends_S, tile_J), num_slots - 1)
    first_J = (tile_J - take(starts_S, row_J)) * tile_queries
    position_J = take(rows.kv_lens_S - rows.q_lens_S, row_J) + first_J
    kv_len_J = take(rows.kv_lens_S, row_J)
    seen_J = jnp.minimum(position_J + tile_queries, kv_len_J) if options.causal else kv_len_J
    first_block_J = _first_block(tiles, options, position_J)
    lane_t = jnp.arange(tile_queries, dtype=jnp.int32)
    offset_T = jnp.arange(num_tokens, dtype=jnp.int32) - take(rows.q_starts_S, rows.row_T)
    offset_T = jnp.where(rows.is_token_T, offset_T, 0)
    work = _work(
        ends_S[-1],
        rows,
        page_size,
        row_J,
        out=tile_J,
        query=tile_J,
        first_block=first_block_J,
        num_blocks=divide_up(seen_J, tiles.block) - first_block_J,
        position=position_J,
    )
    return Tiles(
        work=work,
        token_Jt=(take(rows.q_starts_S, row_J) + first_J)[:, None] + lane_t[None, :],
        tile_T=take(starts_S, rows.row_T) + divide(offset_T, tile_queries),
        lane_T=jax.lax.rem(offset_T, jnp.int32(tile_queries)),
    )


def _work(
    num_items: jax.Array, rows: Rows, page_size: int, row_I: jax.Array, **fields: jax.Array
) -> Work:
    start_M = jnp.arange(rows.page_table_SM.shape[1], dtype=jnp.int32) * page_size
    # Pages before a window may be missing, too: that costs a look-up a block, nothing else.
    is_hole_SM = (rows.page_table_SM == 0) & (start_M[None, :] < rows.kv_lens_S[:, None])
    is_whole_I = take((~is_hole_SM.any(axis=1)).astype(jnp.int32), row_I)
    fields |= {"row": row_I, "kv_len": take(rows.kv_lens_S, row_I), "is_whole": is_whole_I}
    columns = [fields[name].astype(jnp.int32) for name in FIELDS]
    is_item_I = jnp.arange(row_I.size, dtype=jnp.int32) < num_items
    order_I = jnp.argsort(jnp.where(is_item_I, -fields["num_blocks"], 1))
    return Work(num_items.reshape(1), jnp.stack(columns, axis=1)[order_I])


def _first_block(tiles: Sizes, options: Options, position: jax.Array) -> jax.Array:
    """The block of the first position that a token at ``position`` sees."""
    if options.sliding_window is None:
        return jnp.zeros_like(position)
    return divide(jnp.maximum(position - (options.sliding_window - 1), 0), tiles.block)
