"""Ragged paged attention in plain XLA: what the CPU runs.

Rows with one new token are cut into their pages: a flat list of (row, page) items, which a
loop takes a chunk at a time (split-KV, as in FlashDecoding), so the work is the sum of the lengths
present. Rows with more tokens are cut into tiles of queries; each tile walks over the blocks that
it can see, as in FlashAttention-2 (arXiv 2307.08691). Both loops have dynamic trip counts: what is
not in the batch costs nothing. The lists of items and tiles do not depend on a layer; XLA computes
them once for all layers of a program.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.nonnegative import count_ends, divide, divide_up, take
from pallas_kernels.paging import softmax
from pallas_kernels.paging.options import Options
from pallas_kernels.paging.pool import stored_tokens, take_pages, to_float32
from pallas_kernels.paging.rows import Rows, describe_rows, needed_parts, token_pages
from pallas_kernels.paging.softmax import Softmax
from pallas_kernels.paging.tiles import list_tiles
from pallas_kernels.powers import power_of_two_from
from pallas_kernels.ragged_paged_attention.pages import KVPages, write_tokens

CHUNK_BYTES = 3 << 20
"""Size of the float32 keys that a trip over items reads."""

SHORT_ROW = 256
"""Few rows make small chunks: as many items as rows of this length have."""

BLOCK_POSITIONS = 64
"""Positions that a step of a tile reads; a larger page is read whole."""

TILE_QUERIES = (32, 64)
"""The least and the largest number of queries in a tile."""


class Call(NamedTuple):
    """What both parts of a call read."""

    q_TKGH: jax.Array
    pages: KVPages
    rows: Rows
    sinks_KG: jax.Array | None
    k_scale_K: jax.Array | None
    v_scale_K: jax.Array | None
    options: Options


def ragged_paged_attention(
    q_TNH: jax.Array,
    k_TKH: jax.Array | None,
    v_TKH: jax.Array | None,
    kv_pages: KVPages,
    kv_lens_S: jax.Array,
    page_table_SM: jax.Array,
    cu_q_lens_S1: jax.Array,
    distribution_3: jax.Array,
    sinks_N: jax.Array | None,
    k_scale_K: jax.Array | None,
    v_scale_K: jax.Array | None,
    options: Options,
) -> tuple[jax.Array, KVPages]:
    num_tokens, _, head_dim = q_TNH.shape
    num_kv_heads, page_size = kv_pages.num_kv_heads, kv_pages.page_size
    rows = describe_rows(
        num_tokens,
        kv_pages.num_pages,
        page_size,
        kv_lens_S,
        page_table_SM,
        cu_q_lens_S1,
        distribution_3,
    )
    unwritten = None
    if k_TKH is not None and v_TKH is not None:
        stored_k_TKH = stored_tokens(k_TKH, kv_pages.dtype, k_scale_K)
        stored_v_TKH = stored_tokens(v_TKH, kv_pages.dtype, v_scale_K)
        if options.update_kv_cache:
            page_T, offset_T = token_pages(rows, page_size)
            kv_pages = write_tokens(kv_pages, stored_k_TKH, stored_v_TKH, page_T, offset_T)
        else:
            unwritten = (stored_k_TKH, stored_v_TKH)
    call = Call(
        q_TKGH=q_TNH.reshape(num_tokens, num_kv_heads, -1, head_dim),
        pages=kv_pages,
        rows=rows,
        sinks_KG=None if sinks_N is None else sinks_N.astype(jnp.float32).reshape(num_kv_heads, -1),
        k_scale_K=k_scale_K,
        v_scale_K=v_scale_K,
        options=options,
    )
    # Only tiles, which can take any row, know new keys and values that are in no page.
    has_singles, has_tiles = needed_parts(distribution_3) if unwritten is None else (False, True)
    is_single_S = (rows.q_lens_S == 1) & has_singles
    out_TKGH = jnp.zeros(call.q_TKGH.shape, jnp.float32)
    if has_singles:
        out_TKGH = _attend_single_rows(call, is_single_S)
    if has_tiles:
        out_TKGH = _attend_tiles(call, ~is_single_S, out_TKGH, unwritten)
    if v_scale_K is not None:
        out_TKGH *= v_scale_K.astype(jnp.float32)[None, :, None, None]
    return out_TKGH.astype(q_TNH.dtype).reshape(q_TNH.shape), kv_pages


class Items(NamedTuple):
    """The (row, page) items of all rows with one new token; I is an upper bound of their number.

    An entry beyond the last item has row S and sees nothing. ``is_first_I`` marks the first item
    that a row has in its chunk. Of its page an item sees offsets ``first_I <= offset < last_I``.
    """

    row_I: jax.Array
    is_first_I: jax.Array
    token_I: jax.Array
    page_I: jax.Array
    first_I: jax.Array
    last_I: jax.Array


def _chunk_size(call: Call) -> int:
    """The number of items that a trip of the loop takes."""
    pages = call.pages
    num_slots, pages_per_row = call.rows.page_table_SM.shape
    key_bytes = 4 * pages.num_kv_heads * pages.head_dim * pages.page_size
    pages_of_short_row = min(_ceil_div(SHORT_ROW, pages.page_size), pages_per_row)
    return min(max(CHUNK_BYTES // key_bytes, 1), num_slots * pages_of_short_row)


def _list_items(call: Call, is_single_S: jax.Array, chunk: int) -> tuple[jax.Array, Items]:
    """The number of items, and the items, padded to whole chunks."""
    rows, page_size = call.rows, call.pages.page_size
    num_slots, pages_per_row = rows.page_table_SM.shape
    first_S = _first_seen(call.options, rows.kv_lens_S - 1)
    first_page_S = divide(first_S, page_size)
    num_pages_S = jnp.where(is_single_S, divide_up(rows.kv_lens_S, page_size) - first_page_S, 0)
    ends_S = jnp.cumsum(num_pages_S, dtype=jnp.int32)

    item_I = jnp.arange(_ceil_div(num_slots * pages_per_row, chunk) * chunk, dtype=jnp.int32)
    is_item_I = item_I < ends_S[-1]
    row_I = jnp.minimum(count_ends(ends_S, item_I), num_slots - 1)
    place_I = take(first_page_S - ends_S + num_pages_S, row_I) + item_I
    page_I = take(rows.page_table_SM, row_I, place_I)
    page_I = jnp.where(is_item_I, page_I, 0)
    start_I = place_I * page_size
    items = Items(
        row_I=jnp.where(is_item_I, row_I, num_slots),
        is_first_I=(jax.lax.rem(item_I, jnp.int32(chunk)) == 0) | (row_I != jnp.roll(row_I, 1)),
        token_I=take(rows.q_starts_S, row_I),
        page_I=page_I,
        first_I=take(first_S, row_I) - start_I,
        last_I=jnp.where(page_I > 0, take(rows.kv_lens_S, row_I) - start_I, 0),
    )
    return ends_S[-1], items


def _attend_single_rows(call: Call, is_single_S: jax.Array) -> jax.Array:
    """Rows with one new token; returns float32 ``[T, K, G, H]``, zero for all other tokens."""
    rows = call.rows
    chunk = _chunk_size(call)
    num_items, items = _list_items(call, is_single_S, chunk)
    offset_1p = jnp.arange(call.pages.page_size, dtype=jnp.int32)[None, :]

    def take_chunk(state: tuple[jax.Array, Softmax]) -> tuple[jax.Array, Softmax]:
        start, softmax_SKG = state
        row_W, is_first_W, token_W, page_W, first_W, last_W = (
            jax.lax.dynamic_slice_in_dim(x, start, chunk) for x in items
        )
        sees_Wp = (offset_1p >= first_W[:, None]) & (offset_1p < last_W[:, None])
        q_WKGH = _scaled(call, take(call.q_TKGH, token_W))
        logits_WKGp = _logits(call, "WKGH,WKHp->WKGp", q_WKGH, _read_keys(call, page_W, sees_Wp))
        logits_WKGp = jnp.where(sees_Wp[:, None, None, :], logits_WKGp, -jnp.inf)
        top_WKG = softmax.top_of(logits_WKGp.max(axis=-1))
        weights_WKGp = softmax.weights_of(logits_WKGp, top_WKG)
        values_WKpH = _read_values(call, page_W, sees_Wp)
        values_WKGH = jnp.einsum("WKGp,WKpH->WKGH", weights_WKGp, values_WKpH)
        item = Softmax(top_WKG, softmax.join(values_WKGH, weights_WKGp.sum(axis=-1)))
        return start + chunk, softmax.add_items(softmax_SKG, row_W, is_first_W, item)

    softmax_SKG = _begin(call, (rows.q_lens_S.size,), ())
    _, softmax_SKG = jax.lax.while_loop(
        lambda state: state[0] < num_items, take_chunk, (jnp.int32(0), softmax_SKG)
    )
    is_single_T = rows.is_token_T & take(is_single_S, rows.row_T)
    out_TKGH = take(softmax.finish(softmax_SKG), rows.row_T)
    return jnp.where(is_single_T[:, None, None, None], out_TKGH, 0.0)


class Tile(NamedTuple):
    """One tile: its queries, where they stand, and the row they belong to."""

    q_KGqH: jax.Array
    position_q: jax.Array
    row: jax.Array
    cached_len: jax.Array
    kv_len: jax.Array


def _attend_tiles(
    call: Call,
    is_tiled_S: jax.Array,
    out_TKGH: jax.Array,
    unwritten: tuple[jax.Array, jax.Array] | None,
) -> jax.Array:
    """Rows in tiles of queries, one tile at a time; their part of ``out_TKGH`` is replaced.

    ``unwritten``: stored bits of new keys and values that are not in the pages.
    """
    rows = call.rows
    num_tokens, num_slots = rows.row_T.size, rows.q_lens_S.size
    tile_size = _tile_size(num_tokens, num_slots)
    num_tiles, tiles = list_tiles(rows, is_tiled_S, tile_size)
    lane_q = jnp.arange(tile_size, dtype=jnp.int32)

    def take_tile(state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        index, out = state
        row, token, position, num_queries = (take(x, index) for x in tiles)
        tile = Tile(
            q_KGqH=_scaled(call, take(call.q_TKGH, token + lane_q)).transpose(1, 2, 0, 3),
            position_q=position + lane_q,
            row=row,
            cached_len=take(rows.kv_lens_S - rows.q_lens_S, row),
            kv_len=take(rows.kv_lens_S, row),
        )
        softmax_KGq = _begin(call, (), (tile_size,))
        seen_len = position + num_queries if call.options.causal else tile.kv_len
        softmax_KGq = _attend_pages(call, tile, seen_len, softmax_KGq, unwritten is not None)
        if unwritten is not None:
            softmax_KGq = _attend_unwritten(call, tile, softmax_KGq, *unwritten)
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
    size = min(max(_ceil_div(num_tokens, num_slots), least), largest, num_tokens)
    return power_of_two_from(size)


def _attend_pages(
    call: Call, tile: Tile, seen_len: jax.Array, softmax_KGq: Softmax, is_new_unwritten: bool
) -> Softmax:
    """Adds the pages that ``tile`` can see, a block at a time."""
    page_size, num_kv_heads = call.pages.page_size, call.pages.num_kv_heads
    page_M = take(call.rows.page_table_SM, tile.row)
    block_pages = min(max(BLOCK_POSITIONS // page_size, 1), page_M.size)
    block = block_pages * page_size
    first = _first_seen(call.options, tile.position_q[0])
    last = jnp.minimum(seen_len, tile.cached_len) if is_new_unwritten else seen_len

    def take_block(index: jax.Array, softmax_KGq: Softmax) -> Softmax:
        page_b = index * block_pages + jnp.arange(block_pages, dtype=jnp.int32)
        id_b = jnp.where(page_b < page_M.size, take(page_M, page_b), 0)
        position_C = index * block + jnp.arange(block, dtype=jnp.int32)
        is_held_C = (position_C >= first) & (position_C < last) & jnp.repeat(id_b > 0, page_size)
        is_held_bp = is_held_C.reshape(block_pages, page_size)
        keys = _read_keys(call, id_b, is_held_bp).transpose(1, 2, 0, 3)
        values = _read_values(call, id_b, is_held_bp)
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
    call: Call, tile: Tile, softmax_KGq: Softmax, k_TKH: jax.Array, v_TKH: jax.Array
) -> Softmax:
    """Adds the row's new keys and values, which are in no page."""
    padding = ((0, BLOCK_POSITIONS), (0, 0), (0, 0))
    k_TKH, v_TKH = jnp.pad(k_TKH, padding), jnp.pad(v_TKH, padding)
    lane_C = jnp.arange(BLOCK_POSITIONS, dtype=jnp.int32)
    num_new = tile.kv_len - tile.cached_len

    def take_block(index: jax.Array, softmax_KGq: Softmax) -> Softmax:
        first = index * BLOCK_POSITIONS
        token = call.rows.q_starts_S[tile.row] + first
        is_held_C = first + lane_C < num_new
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
        sees_qC &= position_C[None, :] >= _first_seen(call.options, tile.position_q)[:, None]
    logits = _logits(call, "KGqH,KHC->KGqC", tile.q_KGqH, keys_KHC)
    logits = jnp.where(sees_qC[None, None], logits, -jnp.inf)
    top = jnp.maximum(old.top, softmax.top_of(logits.max(axis=-1)))
    weights = softmax.weights_of(logits, top)
    decay = softmax.power_of_two(old.top - top)
    values = jnp.einsum("KGqC,KCH->KGqH", weights, values_KCH)
    sums = softmax.join(values, weights.sum(axis=-1))
    return Softmax(top, old.sums * decay[..., None] + sums)


def _begin(call: Call, before: tuple[int, ...], after: tuple[int, ...]) -> Softmax:
    """An empty ``[*before, K, G, *after]`` softmax, with the sinks in it if there are any."""
    num_kv_heads, group_size, head_dim = call.q_TKGH.shape[1:]
    sinks = call.sinks_KG
    if sinks is not None:
        ones = ((1,) * len(before), (1,) * len(after))
        sinks = sinks.reshape(*ones[0], num_kv_heads, group_size, *ones[1])
    return softmax.begin((*before, num_kv_heads, group_size, *after), head_dim, sinks)


def _scaled(call: Call, q_xKGH: jax.Array) -> jax.Array:
    """Float32 queries with the scale of the logits, and that of the stored keys, in them."""
    q_xKGH = q_xKGH.astype(jnp.float32) * jnp.float32(call.options.scale)
    if call.k_scale_K is None:
        return q_xKGH
    return q_xKGH * call.k_scale_K.astype(jnp.float32)[None, :, None, None]


def _logits(call: Call, product: str, q: jax.Array, keys: jax.Array) -> jax.Array:
    logits = jnp.einsum(product, q, keys)
    if call.options.logit_softcap is None:
        return logits
    cap = jnp.float32(call.options.logit_softcap)
    return cap * jnp.tanh(logits / cap)


def _read_keys(call: Call, id_x: jax.Array, sees_xp: jax.Array) -> jax.Array:
    """Unscaled float32 keys ``[*x, K, H, p]`` of pages ``id_x``; those not seen are 0.

    Their logits are masked in any case, but a gather that computes something is faster than a bare
    one.
    """
    keys = to_float32(take_pages(call.pages.keys_PKHp, id_x), call.pages.dtype)
    return jnp.where(sees_xp[..., None, None, :], keys, 0.0)


def _read_values(call: Call, id_x: jax.Array, sees_xp: jax.Array) -> jax.Array:
    """Unscaled float32 values ``[*x, K, p, H]``; those not seen are 0, as 0 * NaN would not be."""
    values = to_float32(take_pages(call.pages.values_PKpH, id_x), call.pages.dtype)
    return jnp.where(sees_xp[..., None, :, None], values, 0.0)


def _first_seen(options: Options, position: jax.Array) -> jax.Array:
    """The first position that a token at ``position`` sees."""
    if options.sliding_window is None:
        return jnp.zeros_like(position)
    return jnp.maximum(position - (options.sliding_window - 1), 0)


def _ceil_div(x: int, y: int) -> int:
    return -(-x // y)
