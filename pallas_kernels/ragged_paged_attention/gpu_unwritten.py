"""New keys and values that take part without being written, for the Hopper kernel."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from pallas_kernels.nonnegative import count_ends, divide, divide_up, take
from pallas_kernels.paging.rows import Rows, token_pages
from pallas_kernels.ragged_paged_attention.gpu_pages import GpuKVPages, write_tokens


def beside(
    kv_pages: GpuKVPages, rows: Rows, k_TKH: jax.Array, v_TKH: jax.Array
) -> tuple[GpuKVPages, Rows]:
    """Copies of the pages that would be written, with the new keys and values in them; and the rows
    as they would be, if these copies were pages ``P, P + 1, ...`` of the pool.

    The first copy belongs to nobody, as page 0 does.
    """
    page_size, pages_per_row = kv_pages.page_size, rows.page_table_SM.shape[1]
    num_tokens, num_slots = rows.row_T.size, rows.q_lens_S.size
    num_copies = min(num_tokens, num_tokens // page_size + 2 * num_slots)

    is_active_S = rows.q_lens_S > 0
    first_S = divide(rows.kv_lens_S - rows.q_lens_S, page_size)
    count_S = jnp.where(is_active_S, divide_up(rows.kv_lens_S, page_size) - first_S, 0)
    ends_S = jnp.cumsum(count_S, dtype=jnp.int32)
    copy_n = jnp.arange(num_copies, dtype=jnp.int32)
    row_n = jnp.minimum(count_ends(ends_S, copy_n), num_slots - 1)
    place_n = take(first_S, row_n) + copy_n - take(ends_S - count_S, row_n)
    page_n = jnp.where(copy_n < ends_S[-1], take(rows.page_table_SM, row_n, place_n), 0)
    copied = GpuKVPages(heads_PXpH=take(kv_pages.heads_PXpH, jnp.pad(page_n, (1, 0))))

    place_M = jnp.arange(pages_per_row, dtype=jnp.int32)[None, :]
    copy_SM = place_M + (ends_S - count_S - first_S)[:, None] + 1
    is_copied_SM = (place_M >= first_S[:, None]) & (place_M < (first_S + count_S)[:, None])
    is_copied_SM &= rows.page_table_SM > 0
    of_copies = replace(rows, page_table_SM=jnp.where(is_copied_SM, copy_SM, 0))
    page_T, offset_T = token_pages(of_copies, page_size)
    numbered_SM = jnp.where(is_copied_SM, copy_SM + kv_pages.num_pages, rows.page_table_SM)
    return (
        write_tokens(copied, k_TKH, v_TKH, page_T, offset_T),
        replace(rows, page_table_SM=numbered_SM),
    )
