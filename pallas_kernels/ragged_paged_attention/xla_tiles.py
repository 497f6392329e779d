"""Rows in tiles of queries, in plain XLA, and new keys and values that are in no page.

Each tile walks over the blocks that it can see, as in FlashAttention-2 (arXiv 2307.08691).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.nonnegative import divide, divide_up, take
from pallas_kernels.paging import softmax
from pallas_kernels.paging.pool import to_float32
from pallas_kernels.paging.softmax import Softmax
from pallas_kernels.paging.tiles import list_tiles
from pallas_kernels.powers import power_of_two_from
from pallas_kernels.ragged_paged_attention.xla_call import Call

BLOCK_POSITIONS = 64
"""Positions that a step of a tile reads; a larger page is read whole."""

TILE_QUERIES = (32, 64)
"""The least and the largest number of queries in a tile."""


class Unwritten(NamedTuple):
    """Stored bits of new keys and values that are not in the pages, and which of them would be: a
    position that is in no page is not seen."""

    k_TKH: jax.Array
    v_TKH: jax.Array
    has_page_T: jax.Array


class Tile(NamedTuple):
    """One tile: its queries, where they stand, and the row they belong to."""

    q_KGqH: jax.Array
    position_q: jax.Array
    row: jax.Array
    cached_len: jax.Array
    kv_len: jax.Array


def attend_tiles(
    call: Call,
    is_tiled_S: jax.Array,
    out_TKGH: jax.Array,
    unwritten: Unwritten | None,
) -> jax.Array:
    """Rows in tiles of queries, one tile at a time; their part of ``out_TKGH`` is replaced."""
    rows = call.rows
    num_tokens, num_slots = rows.row_T.size, rows.q_lens_S.size
    tile_size = _tile_size(num_tokens, num_slots)
    num_tiles, tiles = list_tiles(rows, is_tiled_S, tile_size)
    lane_q = jnp.arange(tile_size, dtype=jnp.int32)

    def take_tile(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        index, out = state
        row, token, position, num_queries = (take(x, index) for x in tiles)
        tile = Tile(
            q_KGqH=call.scaled(take(call.q_TKGH, token + lane_q)).transpose(1, 2, 0, 3),
            position_q=position + lane_q,
            row=row,
            cached_len=take(rows.kv_lens_S - rows.q_lens_S, row),
            kv_len=take(rows.kv_lens_S, row),
        )
        softmax_KGq = call.begin((), (tile_size,))
        seen_len = position + num_queries if call.options.causal else tile.kv_len
        softmax_KGq = _attend_pages(call, tile, seen_len, softmax_KGq, unwritten is not None)
        if unwritten is not None:
            softmax_KGq = _attend_unwritten(call, tile, softmax_KGq, unwritten)
        token_q = jnp.where(lane_q < num_queries, token + lane_q, num_tokens)
        new_qKGH = softmax.finish(softmax_KGq).transpose(2, 0, 1, 3)
        return index + 1, out.at[token_q].set(new_qKGH, mode="drop", wrap_negative_indices=False)

    _, out_TKGH = jax.lax.while_loop(
        lambda state: state[0] < num_tiles, take_tile, (jnp.int32(0), out_TKGH)
    )
    return out_TKGH


def _tile_size(num_tokens: int, num_slots: int) -> int:
    """A power of two near the tokens a row has, for rows in a program of these static sizes."""
    least, largest = TILE_QUERIES
    size = min(max(-(-num_tokens // num_slots), least), largest, num_tokens)
    return power_of_two_from(size)


def _attend_pages(
    call: Call, tile: Tile, seen_len: jax.Array, softmax_KGq: Softmax, is_new_unwritten: bool
) -> Softmax:
    """Adds the pages that ``tile`` can see, a block at a time."""
    page_size, num_kv_heads = call.pages.page_size, call.pages.num_kv_heads
    page_M = take(call.rows.page_table_SM, tile.row)
    block_pages = min(max(BLOCK_POSITIONS // page_size, 1), page_M.size)
    block = block_pages * page_size
    first = call.first_seen(tile.position_q[0])
    last = jnp.minimum(seen_len, tile.cached_len) if is_new_unwritten else seen_len

    def take_block(index: jax.Array, softmax_KGq: Softmax) -> Softmax:
        page_b = index * block_pages + jnp.arange(block_pages, dtype=jnp.int32)
        id_b = jnp.where(page_b < page_M.size, take(page_M, page_b), 0)
        position_C = index * block + jnp.arange(block, dtype=jnp.int32)
        is_held_C = (position_C >= first) & (position_C < last) & jnp.repeat(id_b > 0, page_size)
        is_held_bp = is_held_C.reshape(block_pages, page_size)
        keys = call.read_keys(id_b, is_held_bp).transpose(1, 2, 0, 3)
        values = call.read_values(id_b, is_held_bp)
        return _add_block(
            call,
            tile,
            softmax_KGq,
            keys.reshape(num_kv_heads, -1, block),
            values.transpose(1, 0, 2, 3).reshape(num_kv_heads, block, -1),
            position_C,
            is_held_C,
        )

    return jax.lax.fori_loop(divide(first, block), divide_up(last, block), take_block, softmax_KGq)


def _attend_unwritten(
    call: Call, tile: Tile, softmax_KGq: Softmax, unwritten: Unwritten
) -> Softmax:
    """Adds the row's new keys and values, which were not written."""
    k_TKH, v_TKH, has_page_T = (
        jnp.pad(x, ((0, BLOCK_POSITIONS), *((0, 0),) * (x.ndim - 1))) for x in unwritten
    )
    lane_C = jnp.arange(BLOCK_POSITIONS, dtype=jnp.int32)
    num_new = tile.kv_len - tile.cached_len

    def take_block(index: jax.Array, softmax_KGq: Softmax) -> Softmax:
        first = index * BLOCK_POSITIONS
        token = call.rows.q_starts_S[tile.row] + first
        is_held_C = jax.lax.dynamic_slice_in_dim(has_page_T, token, BLOCK_POSITIONS)
        is_held_C &= first + lane_C < num_new
        keys, values = (
            to_float32(jax.lax.dynamic_slice_in_dim(x, token, BLOCK_POSITIONS), call.pages.dtype)
            for x in (k_TKH, v_TKH)
        )
        values = jnp.where(is_held_C[:, None, None], values, 0.0)
        position_C = tile.cached_len + first + lane_C
        return _add_block(
            call,
            tile,
            softmax_KGq,
            keys.transpose(1, 2, 0),
            values.transpose(1, 0, 2),
            position_C,
            is_held_C,
        )

    num_blocks = divide_up(num_new, BLOCK_POSITIONS)
    return jax.lax.fori_loop(0, num_blocks, take_block, softmax_KGq)


def _add_block(
    call: Call,
    tile: Tile,
    old: Softmax,
    keys_KHC: jax.Array,
    values_KCH: jax.Array,
    position_C: jax.Array,
    is_held_C: jax.Array,
) -> Softmax:
    """One step of the online softmax of a tile over C positions."""
    sees_qC = jnp.broadcast_to(is_held_C[None, :], (tile.position_q.size, position_C.size))
    if call.options.causal:
        sees_qC &= position_C[None, :] <= tile.position_q[:, None]
    if call.options.sliding_window is not None:
        sees_qC &= position_C[None, :] >= call.first_seen(tile.position_q)[:, None]
    logits = call.logits("KGqH,KHC->KGqC", tile.q_KGqH, keys_KHC)
    logits = jnp.where(sees_qC[None, None], logits, -jnp.inf)
    top = jnp.maximum(old.top, softmax.top_of(logits.max(axis=-1)))
    weights = softmax.weights_of(logits, top)
    decay = softmax.power_of_two(old.top - top)
    values = jnp.einsum("KGqC,KCH->KGqH", weights, values_KCH)
    sums = softmax.join(values, weights.sum(axis=-1))
    return Softmax(top, old.sums * decay[..., None] + sums)
