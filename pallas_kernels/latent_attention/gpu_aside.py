"""New latents that take part but must not be written: they go into pages of their own.

A row is seen as two: the cached positions up to the last page border before the first new token,
and what comes from there on, in a copy of that page and in fresh ones. So the copy is of one page a
row, never of the pool.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp

from pallas_kernels.latent_attention.gpu_pages import (
    GpuLatentPages,
    allocate_gpu_latent_pages,
    write_tokens,
)
from pallas_kernels.latent_attention.pages import gather_latent_pages
from pallas_kernels.nonnegative import divide, divide_up, take
from pallas_kernels.paging.rows import Rows, token_pages


def lay_aside(
    pages: GpuLatentPages, rows: Rows, latent_TR: jax.Array, rope_Tr: jax.Array
) -> tuple[Rows, Rows, GpuLatentPages]:
    """The cached part of every row, the rest of it, and the pages that hold this rest.

    A position in no page is in no page laid aside either, so that it is not seen.
    """
    num_tokens, page_size = rows.row_T.size, pages.page_size
    num_slots, pages_per_row = rows.page_table_SM.shape
    first_S = divide(rows.kv_lens_S - rows.q_lens_S, page_size)
    aside_lens_S = rows.kv_lens_S - first_S * page_size
    counts_S = divide_up(aside_lens_S, page_size)
    starts_S = jnp.cumsum(counts_S, dtype=jnp.int32) - counts_S

    # A row's new tokens touch at most two pages more than they fill.
    num_aside = 1 + num_tokens // page_size + 2 * num_slots
    index_M = jnp.arange(min(num_tokens // page_size + 2, pages_per_row), dtype=jnp.int32)
    slot_SM = jnp.arange(num_slots, dtype=jnp.int32)[:, None]
    page_SM = take(rows.page_table_SM, slot_SM, first_S[:, None] + index_M[None, :])
    is_used_SM = (index_M[None, :] < counts_S[:, None]) & (page_SM > 0)
    id_SM = 1 + starts_S[:, None] + index_M[None, :]
    table_SM = jnp.where(is_used_SM & (id_SM < num_aside), id_SM, 0)

    sizes = (page_size, pages.latent_rank, pages.rope_dim)
    aside_pages = allocate_gpu_latent_pages(num_aside, *sizes, pages.dtype)
    border_S = jnp.where(table_SM[:, 0] > 0, table_SM[:, 0], num_aside)
    aside_pages = aside_pages.write(border_S, *gather_latent_pages(pages, page_SM[:, 0]))
    cached = replace(rows, kv_lens_S=first_S * page_size)
    aside = replace(
        rows,
        kv_lens_S=aside_lens_S,
        page_table_SM=table_SM,
        position_T=rows.position_T - take(first_S, rows.row_T) * page_size,
    )
    place = token_pages(aside, page_size)
    return cached, aside, write_tokens(aside_pages, latent_TR, rope_Tr, *place)
