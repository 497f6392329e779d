"""Rows with one new token, in plain XLA: a flat list of (row, page) items.

A loop takes a chunk of them at a time (split-KV, as in FlashDecoding), so the work is the sum of
the lengths present.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.nonnegative import count_ends, divide, divide_up, take
from pallas_kernels.paging import softmax
from pallas_kernels.paging.softmax import Softmax
from pallas_kernels.ragged_paged_attention.xla_call import Call

CHUNK_BYTES = 3 << 20
"""Size of the float32 keys that a trip over items reads."""

SHORT_ROW = 256
"""Few rows make small chunks: as many items as rows of this length have."""


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
    pages_of_short_row = min(-(-SHORT_ROW // pages.page_size), pages_per_row)
    return min(max(CHUNK_BYTES // key_bytes, 1), num_slots * pages_of_short_row)


def _list_items(call: Call, is_single_S: jax.Array, chunk: int) -> tuple[jax.Array, Items]:
    """The number of items, and the items, padded to whole chunks."""
    rows, page_size = call.rows, call.pages.page_size
    num_slots, pages_per_row = rows.page_table_SM.shape
    first_S = call.first_seen(rows.kv_lens_S - 1)
    first_page_S = divide(first_S, page_size)
    num_pages_S = jnp.where(is_single_S, divide_up(rows.kv_lens_S, page_size) - first_page_S, 0)
    ends_S = jnp.cumsum(num_pages_S, dtype=jnp.int32)

    item_I = jnp.arange(-(-(num_slots * pages_per_row) // chunk) * chunk, dtype=jnp.int32)
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


def attend_single_rows(call: Call, is_single_S: jax.Array) -> jax.Array:
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
        q_WKGH = call.scaled(take(call.q_TKGH, token_W))
        logits_WKGp = call.logits("WKGH,WKHp->WKGp", q_WKGH, call.read_keys(page_W, sees_Wp))
        logits_WKGp = jnp.where(sees_Wp[:, None, None, :], logits_WKGp, -jnp.inf)
        top_WKG = softmax.top_of(logits_WKGp.max(axis=-1))
        weights_WKGp = softmax.weights_of(logits_WKGp, top_WKG)
        values_WKpH = call.read_values(page_W, sees_Wp)
        values_WKGH = jnp.einsum("WKGp,WKpH->WKGH", weights_WKGp, values_WKpH)
        item = Softmax(top_WKG, softmax.join(values_WKGH, weights_WKGp.sum(axis=-1)))
        return start + chunk, softmax.add_items(softmax_SKG, row_W, is_first_W, item)

    softmax_SKG = call.begin((rows.q_lens_S.size,), ())
    _, softmax_SKG = jax.lax.while_loop(
        lambda state: state[0] < num_items, take_chunk, (jnp.int32(0), softmax_SKG)
    )
    is_single_T = rows.is_token_T & take(is_single_S, rows.row_T)
    out_TKGH = take(softmax.finish(softmax_SKG), rows.row_T)
    return jnp.where(is_single_T[:, None, None, None], out_TKGH, 0.0)
