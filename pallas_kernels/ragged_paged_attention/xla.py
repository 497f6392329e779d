"""Ragged paged attention in plain XLA: what the CPU runs.

Rows with one new token are cut into blocks of keys, a flat list of (row, block) items that a loop with
a dynamic trip count takes a chunk at a time (split-KV, FlashDecoding): the work is the sum of the
lengths present. Rows with more tokens are cut into tiles of queries; each tile walks over the blocks
it can see with an online softmax (arXiv 1805.02867). A part that has no rows makes no trips.

The running maximum of a row is kept as a power of two, so bringing old sums to a new maximum is exact:
a row's arithmetic does not depend on how its items fall into chunks.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.ragged_paged_attention.options import Options
from pallas_kernels.ragged_paged_attention.pages import (
    KVPages,
    from_storage,
    stored_tokens,
    write_tokens,
)
from pallas_kernels.ragged_paged_attention.rows import Rows, describe_rows, token_pages

DECODE_BLOCK = 64
DECODE_CHUNK = 16
TILE_QUERIES = 64
TILE_BLOCK = 128
LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453
NO_TOP = -1e30
"""The logarithm of the running maximum of a row that has seen nothing."""


class Softmax(NamedTuple):
    """A softmax average in the making: ``sum(2**-top * weights)`` and the weighted values."""

    top: jax.Array
    total: jax.Array
    values: jax.Array


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
    num_tokens, num_heads, head_dim = q_TNH.shape
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
    brings_kv = k_TKH is not None and v_TKH is not None
    if brings_kv and options.update_kv_cache:
        page_T, offset_T = token_pages(rows, page_size)
        kv_pages = write_tokens(kv_pages, k_TKH, v_TKH, page_T, offset_T, k_scale_K, v_scale_K)
    call = Call(
        q_TKGH=q_TNH.reshape(num_tokens, num_kv_heads, -1, head_dim),
        pages=kv_pages,
        rows=rows,
        sinks_KG=None if sinks_N is None else sinks_N.astype(jnp.float32).reshape(num_kv_heads, -1),
        k_scale_K=k_scale_K,
        v_scale_K=v_scale_K,
        options=options,
    )
    out_TKGH = jnp.zeros(call.q_TKGH.shape, jnp.float32)
    unwritten = None
    if brings_kv and not options.update_kv_cache:
        unwritten = (
            stored_tokens(k_TKH, kv_pages.dtype, k_scale_K),
            stored_tokens(v_TKH, kv_pages.dtype, v_scale_K),
        )
        is_single_S = jnp.zeros_like(rows.q_lens_S, jnp.bool_)
    else:
        is_single_S = rows.q_lens_S == 1
        out_SKGH = _attend_single_rows(call, is_single_S)
        is_single_T = rows.is_token_T & is_single_S[rows.row_T]
        out_TKGH = jnp.where(is_single_T[:, None, None, None], out_SKGH[rows.row_T], 0.0)
    out_TKGH = _attend_tiles(call, is_single_S, out_TKGH, unwritten)
    return out_TKGH.astype(q_TNH.dtype).reshape(q_TNH.shape), kv_pages


class Items(NamedTuple):
    """The flat list of (row, block of pages) of all rows with one new token; I is an upper bound.

    Nothing here depends on a layer, so XLA computes it once for all of them. An entry beyond the last
    item has row S and sees nothing.
    """

    count: jax.Array
    row_I: jax.Array
    token_I: jax.Array
    page_Ib: jax.Array
    first_Ib: jax.Array
    last_Ib: jax.Array


def _list_items(rows: Rows, is_single_S: jax.Array, page_size: int, window: int | None) -> Items:
    num_slots, pages_per_row = rows.page_table_SM.shape
    block_pages = min(max(DECODE_BLOCK // page_size, 1), pages_per_row)
    blocks_per_row = -(-pages_per_row // block_pages)
    first_S = jnp.zeros_like(rows.kv_lens_S)
    if window is not None:
        first_S = jnp.maximum(rows.kv_lens_S - window, 0)
    first_block_S = first_S // (block_pages * page_size)
    num_blocks_S = -(-rows.kv_lens_S // (block_pages * page_size)) - first_block_S
    num_blocks_S = jnp.where(is_single_S, num_blocks_S, 0)
    ends_S = jnp.cumsum(num_blocks_S)

    item_I = jnp.arange(num_slots * blocks_per_row, dtype=jnp.int32)
    is_item_I = item_I < ends_S[-1]
    row_I = (ends_S[None, :] <= item_I[:, None]).sum(axis=1, dtype=jnp.int32)
    row_I = jnp.minimum(row_I, jnp.int32(num_slots - 1))
    block_I = first_block_S[row_I] + item_I - (ends_S - num_blocks_S)[row_I]
    page_Ib = block_I[:, None] * block_pages + jnp.arange(block_pages, dtype=jnp.int32)[None, :]
    is_page_Ib = is_item_I[:, None] & (page_Ib < pages_per_row)
    id_Ib = rows.page_table_SM[row_I[:, None], jnp.clip(page_Ib, 0, pages_per_row - 1)]
    id_Ib = jnp.where(is_page_Ib, id_Ib, 0)
    start_Ib = page_Ib * page_size
    last_Ib = jnp.where(id_Ib > 0, rows.kv_lens_S[row_I][:, None] - start_Ib, 0)
    return Items(
        count=ends_S[-1],
        row_I=jnp.where(is_item_I, row_I, num_slots),
        token_I=rows.q_starts_S[row_I],
        page_Ib=id_Ib,
        first_Ib=first_S[row_I][:, None] - start_Ib,
        last_Ib=last_Ib,
    )


def _attend_single_rows(call: Call, is_single_S: jax.Array) -> jax.Array:
    """Rows with one new token; returns float32 ``[S, K, G, H]``, zero for the other rows."""
    rows, pages, options = call.rows, call.pages, call.options
    num_slots = rows.kv_lens_S.size
    items = _list_items(rows, is_single_S, pages.page_size, options.sliding_window)
    chunk = min(DECODE_CHUNK, items.row_I.size)
    pad = -items.row_I.size % chunk
    items = Items(
        items.count,
        jnp.pad(items.row_I, (0, pad), constant_values=num_slots),
        *(jnp.pad(x, ((0, pad),) + ((0, 0),) * (x.ndim - 1)) for x in items[2:]),
    )

    def take_chunk(state: tuple[jax.Array, Softmax]) -> tuple[jax.Array, Softmax]:
        start, softmax = state
        row_W, token_W, page_Wb, first_Wb, last_Wb = (
            jax.lax.dynamic_slice_in_dim(x, start, chunk) for x in items[1:]
        )
        offset_p = jnp.arange(pages.page_size, dtype=jnp.int32)
        sees_Wbp = (offset_p >= first_Wb[..., None]) & (offset_p < last_Wb[..., None])
        q_WKGH = _scaled_queries(call, call.q_TKGH.at[token_W].get(mode="clip"))
        logits = _logits(call, "WKGH,WbKHp->WKGbp", q_WKGH, _gather_keys(call, page_Wb))
        logits = jnp.where(sees_Wbp[:, None, None], logits, -jnp.inf)
        top_WKG = _top(logits.max(axis=(3, 4)))
        weights = jnp.exp(logits - (top_WKG * jnp.float32(LN_2))[..., None, None])
        values = _gather_values(call, page_Wb, sees_Wbp)
        average = jnp.einsum("WKGbp,WbKpH->WKGH", weights, values)
        item = Softmax(top_WKG, weights.sum(axis=(3, 4)), average)
        return start + chunk, _add_items(softmax, row_W, item)

    _, softmax = jax.lax.while_loop(
        lambda state: state[0] < items.count,
        take_chunk,
        (jnp.int32(0), _begin(call, (num_slots,))),
    )
    return _finish(call, softmax)


def _add_items(old: Softmax, row_W: jax.Array, item: Softmax) -> Softmax:
    """Adds items to the rows they belong to, in their order; a row that does not exist is dropped."""
    is_first_W = jnp.concatenate([jnp.ones(1, jnp.bool_), row_W[1:] != row_W[:-1]])
    top = old.top.at[row_W].max(item.top, mode="drop")
    top_W = top.at[row_W].get(mode="clip")
    old_weight_W = _power_of_two(old.top.at[row_W].get(mode="clip") - top_W)
    old_weight_W = jnp.where(is_first_W[:, None, None], old_weight_W, 1.0)
    weight_W = _power_of_two(item.top - top_W)

    def add(sums: jax.Array, old_weight: jax.Array, new: jax.Array) -> jax.Array:
        old_weight = jnp.broadcast_to(old_weight, new.shape)
        return sums.at[row_W].multiply(old_weight, mode="drop").at[row_W].add(new, mode="drop")

    return Softmax(
        top,
        add(old.total, old_weight_W, weight_W * item.total),
        add(old.values, old_weight_W[..., None], weight_W[..., None] * item.values),
    )


def _gather_bits(pool: jax.Array, id_x: jax.Array) -> jax.Array:
    """Whole pages ``[*x, ...]``. Taken as flat runs of memory: four times the speed of the 4-d form."""
    flat = pool.reshape(pool.shape[0], -1)
    return flat.at[id_x].get(mode="promise_in_bounds").reshape(*id_x.shape, *pool.shape[1:])


def _gather_keys(call: Call, id_x: jax.Array) -> jax.Array:
    return _floats(_gather_bits(call.pages.keys_PKHp, id_x), call.pages)


def _gather_values(call: Call, id_x: jax.Array, sees_xp: jax.Array) -> jax.Array:
    """Values ``[*x, K, p, H]``; those not to be seen become 0, because 0 * NaN would not."""
    values = _floats(_gather_bits(call.pages.values_PKpH, id_x), call.pages)
    return jnp.where(sees_xp[..., None, :, None], values, 0.0)


def _floats(bits: jax.Array, pages: KVPages) -> jax.Array:
    """Stored bits as unscaled float32 values."""
    if pages.dtype == jnp.bfloat16:
        return jax.lax.bitcast_convert_type(bits.astype(jnp.uint32) << 16, jnp.float32)
    return from_storage(bits, pages.dtype).astype(jnp.float32)


def _scaled_queries(call: Call, q_xKGH: jax.Array) -> jax.Array:
    """Float32 queries with the scale of the logits, and that of the stored keys, in them."""
    q_xKGH = q_xKGH.astype(jnp.float32) * jnp.float32(call.options.scale)
    if call.k_scale_K is None:
        return q_xKGH
    return q_xKGH * call.k_scale_K.astype(jnp.float32)[:, None, None]


def _logits(call: Call, product: str, q: jax.Array, keys: jax.Array) -> jax.Array:
    logits = jnp.einsum(product, q, keys, preferred_element_type=jnp.float32)
    if call.options.logit_softcap is None:
        return logits
    cap = jnp.float32(call.options.logit_softcap)
    return cap * jnp.tanh(logits / cap)


def _attend_tiles(
    call: Call,
    is_single_S: jax.Array,
    out_TKGH: jax.Array,
    unwritten: tuple[jax.Array, jax.Array] | None,
) -> jax.Array:
    """Rows of several new tokens, ``TILE_QUERIES`` of one row at a time, into ``out_TKGH``."""
    rows, pages, options = call.rows, call.pages, call.options
    num_tokens, num_kv_heads, groups, head_dim = call.q_TKGH.shape
    num_slots, pages_per_row = rows.page_table_SM.shape
    tile = TILE_QUERIES
    block_pages = min(max(TILE_BLOCK // pages.page_size, 1), pages_per_row)
    block = block_pages * pages.page_size
    num_tiles_S = jnp.where(is_single_S, 0, -(-rows.q_lens_S // tile))
    ends_S = jnp.cumsum(num_tiles_S)
    cached_S = rows.kv_lens_S - rows.q_lens_S
    queries = jnp.pad(call.q_TKGH, ((0, tile), (0, 0), (0, 0), (0, 0)))
    out = jnp.pad(out_TKGH, ((0, tile), (0, 0), (0, 0), (0, 0)))
    lane_q = jnp.arange(tile, dtype=jnp.int32)

    def attend(state, keys_KHC, values_KCH, sees_qC, q):
        softmax = state
        logits = _logits(call, "qKGH,KHC->KGqC", q, keys_KHC)
        logits = jnp.where(sees_qC[None, None], logits, -jnp.inf)
        top = jnp.maximum(softmax.top, _top(logits.max(axis=-1)))
        weights = jnp.exp(logits - (top * jnp.float32(LN_2))[..., None])
        decay = _power_of_two(softmax.top - top)
        new = jnp.einsum("KGqC,KCH->KGqH", weights, values_KCH, preferred_element_type=jnp.float32)
        return Softmax(
            top,
            softmax.total * decay + weights.sum(axis=-1),
            softmax.values * decay[..., None] + new,
        )

    def take_tile(state):
        index, out = state
        row = jnp.minimum((ends_S <= index).sum(dtype=jnp.int32), jnp.int32(num_slots - 1))
        first_q = (index - (ends_S[row] - num_tiles_S[row])) * tile
        num_q = jnp.minimum(rows.q_lens_S[row] - first_q, tile)
        start = rows.q_starts_S[row] + first_q
        q = _scaled_queries(call, jax.lax.dynamic_slice_in_dim(queries, start, tile))
        position_q = cached_S[row] + first_q + lane_q
        length = rows.kv_lens_S[row]
        first_seen, _ = _window(options, position_q[0], length)
        last_seen = jnp.minimum(cached_S[row] + first_q + num_q, length) if options.causal else length
        paged_end = jnp.minimum(last_seen, cached_S[row]) if unwritten is not None else last_seen
        page_M = rows.page_table_SM[row]

        def sees(position_C):
            ok = (position_C >= first_seen)[None, :] & (position_C < length)[None, :]
            if options.causal:
                ok &= position_C[None, :] <= position_q[:, None]
            if options.sliding_window is not None:
                ok &= position_C[None, :] > position_q[:, None] - options.sliding_window
            return ok

        def take_block(index, softmax):
            page_b = index * block_pages + jnp.arange(block_pages, dtype=jnp.int32)
            id_b = page_M[jnp.clip(page_b, 0, pages_per_row - 1)]
            id_b = jnp.where(page_b < pages_per_row, id_b, 0)
            position_C = index * block + jnp.arange(block, dtype=jnp.int32)
            ok_C = jnp.repeat(id_b > 0, pages.page_size) & (position_C < paged_end)
            ok_C &= position_C >= first_seen
            keys = _gather_keys(call, id_b)
            values = _gather_values(call, id_b, ok_C.reshape(block_pages, -1))
            keys = keys.transpose(1, 2, 0, 3).reshape(num_kv_heads, head_dim, block)
            values = values.transpose(1, 0, 2, 3).reshape(num_kv_heads, block, head_dim)
            return attend(softmax, keys, values, sees(position_C) & ok_C[None, :], q)

        softmax = _begin(call, (), tile)
        lo, hi = first_seen // block, -(-paged_end // block)
        softmax = jax.lax.fori_loop(lo, hi, take_block, softmax)
        if unwritten is not None:
            new_keys, new_values = (
                jnp.pad(x, ((0, TILE_BLOCK), (0, 0), (0, 0))) for x in unwritten
            )

            def take_new_block(index, softmax):
                at = index * TILE_BLOCK
                new_C = at + jnp.arange(TILE_BLOCK, dtype=jnp.int32)
                ok_C = new_C < rows.q_lens_S[row]
                bits = jax.lax.dynamic_slice_in_dim(
                    new_keys, rows.q_starts_S[row] + at, TILE_BLOCK
                )
                keys = _floats(bits, pages)
                bits = jax.lax.dynamic_slice_in_dim(
                    new_values, rows.q_starts_S[row] + at, TILE_BLOCK
                )
                values = _floats(bits, pages)
                values = jnp.where(ok_C[:, None, None], values, 0.0)
                seen = sees(cached_S[row] + new_C) & ok_C[None, :]
                return attend(
                    softmax, keys.transpose(1, 2, 0), values.transpose(1, 0, 2), seen, q
                )

            softmax = jax.lax.fori_loop(
                0, -(-rows.q_lens_S[row] // TILE_BLOCK), take_new_block, softmax
            )
        new = _finish(call, softmax, 1).transpose(2, 0, 1, 3)
        old = jax.lax.dynamic_slice_in_dim(out, start, tile)
        new = jnp.where((lane_q < num_q)[:, None, None, None], new, old)
        return index + 1, jax.lax.dynamic_update_slice_in_dim(out, new, start, 0)

    _, out = jax.lax.while_loop(
        lambda state: state[0] < ends_S[-1], take_tile, (jnp.int32(0), out)
    )
    return out[:num_tokens]


def _begin(call: Call, leading: tuple[int, ...], trailing: int | None = None) -> Softmax:
    """The softmax before any key: empty, or holding the sink."""
    num_kv_heads, groups, head_dim = call.q_TKGH.shape[1:]
    tail = () if trailing is None else (trailing,)
    shape = (*leading, num_kv_heads, groups, *tail)
    if call.sinks_KG is None:
        top, total = jnp.full(shape, NO_TOP, jnp.float32), jnp.zeros(shape, jnp.float32)
    else:
        sinks = call.sinks_KG.reshape(*(1 for _ in leading), num_kv_heads, groups, *(1 for _ in tail))
        sinks = jnp.broadcast_to(sinks, shape)
        top = _top(sinks)
        total = jnp.exp(sinks - top * jnp.float32(LN_2))
    return Softmax(top, total, jnp.zeros((*shape, head_dim), jnp.float32))


def _finish(call: Call, softmax: Softmax, trailing: int = 0) -> jax.Array:
    """The average: weighted values over the sum of weights, 0 where nothing was seen."""
    average = softmax.values / jnp.where(softmax.total > 0, softmax.total, 1.0)[..., None]
    if call.v_scale_K is None:
        return average
    scale = call.v_scale_K.astype(jnp.float32)
    return average * scale.reshape(-1, *(1 for _ in range(2 + trailing)))


def _top(logits: jax.Array) -> jax.Array:
    """The exponent of the least power of two that is not below ``exp(logits)``."""
    return jnp.maximum(jnp.ceil(logits * jnp.float32(LOG2_E)), jnp.float32(NO_TOP))


def _power_of_two(exponent: jax.Array) -> jax.Array:
    """Exactly ``2 ** exponent`` for an integer ``exponent <= 0``; 0 where that underflows."""
    bits = (jnp.maximum(exponent, -127.0).astype(jnp.int32) + 127) << 23
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _window(
    options: Options, position: jax.Array, length: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The positions ``[first, last)`` which a token at ``position`` can see if it is its row's last."""
    if options.sliding_window is None:
        return jnp.zeros_like(position), length
    return jnp.maximum(position - (options.sliding_window - 1), 0), length
