"""Ragged paged attention in plain XLA: what the CPU runs.

Rows with one new token are lists of pages (``xla_items.py``), rows with more are tiles of queries
(``xla_tiles.py``); where the CPU can, machine code takes their place (``cpu.py``). All loops have
dynamic trip counts: what is not in the batch costs nothing. The lists of items and tiles do not
depend on a layer; XLA computes them once for all layers of a program.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.paging.options import Options
from pallas_kernels.paging.pool import stored_tokens
from pallas_kernels.paging.rows import describe_rows, needed_parts, token_pages
from pallas_kernels.ragged_paged_attention import cpu, xla_items, xla_tiles
from pallas_kernels.ragged_paged_attention.pages import KVPages, write_tokens
from pallas_kernels.ragged_paged_attention.xla_call import Call
from pallas_kernels.ragged_paged_attention.xla_tiles import Unwritten


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
        page_T, offset_T = token_pages(rows, page_size)
        if options.update_kv_cache:
            kv_pages = write_tokens(kv_pages, stored_k_TKH, stored_v_TKH, page_T, offset_T)
        else:
            unwritten = Unwritten(stored_k_TKH, stored_v_TKH, page_T > 0)
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
    has_code = cpu.refuse(call) is None
    if has_singles:
        attend = cpu if has_code else xla_items
        out_TKGH = attend.attend_single_rows(call, is_single_S)
    if has_tiles and has_code and unwritten is None:
        out_TKGH = cpu.attend_tiles(call, ~is_single_S, out_TKGH)
    elif has_tiles:
        out_TKGH = xla_tiles.attend_tiles(call, ~is_single_S, out_TKGH, unwritten)
    if v_scale_K is not None:
        out_TKGH *= v_scale_K.astype(jnp.float32)[None, :, None, None]
    return out_TKGH.astype(q_TNH.dtype).reshape(q_TNH.shape), kv_pages
