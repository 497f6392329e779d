"""Ragged paged attention on a Hopper GPU: plain XLA around the kernel of ``gpu_kernel.py``.

New keys and values are written by a scatter first, so that the kernel only reads. Rows with one new
token are split along their length (FlashDecoding) and their parts joined here; rows with more are
cut into tiles of queries, each of which sees its row in one item.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.ragged_paged_attention import gpu_kernel, gpu_work
from pallas_kernels.ragged_paged_attention.gpu_pages import GpuKVPages, write_tokens
from pallas_kernels.ragged_paged_attention.options import Options
from pallas_kernels.ragged_paged_attention.rows import Rows, describe_rows, take, token_pages
from pallas_kernels.ragged_paged_attention.softmax import LOG2_E

PREFILL_WARPGROUPS = {64: 2, 128: 2, 256: 1}
"""Warpgroups that compute a tile (64 rows each), by head dim: two leave a thread 168 registers."""


def ragged_paged_attention(
    q_TNH: jax.Array,
    k_TKH: jax.Array | None,
    v_TKH: jax.Array | None,
    kv_pages: GpuKVPages,
    kv_lens_S: jax.Array,
    page_table_SM: jax.Array,
    cu_q_lens_S1: jax.Array,
    distribution_3: jax.Array,
    sinks_N: jax.Array | None,
    k_scale_K: jax.Array | None,
    v_scale_K: jax.Array | None,
    options: Options,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, GpuKVPages]:
    """Queries are rounded to the dtype of the pages, as are the softmax weights."""
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
    if k_TKH is not None and v_TKH is not None:
        page_T, offset_T = token_pages(rows, page_size)
        k_TKH = _stored(k_TKH, kv_pages.dtype, k_scale_K)
        v_TKH = _stored(v_TKH, kv_pages.dtype, v_scale_K)
        kv_pages = write_tokens(kv_pages, k_TKH, v_TKH, page_T, offset_T)
    q_TKGH = q_TNH.reshape(num_tokens, num_kv_heads, -1, head_dim)
    if k_scale_K is not None:
        q_TKGH = q_TKGH.astype(jnp.float32) * k_scale_K.astype(jnp.float32)[None, :, None, None]
    q_TKGH = q_TKGH.astype(kv_pages.dtype)

    has_singles, has_tiles = _parts(distribution_3)
    is_single_S = (rows.q_lens_S == 1) & has_singles
    sinks_KG = None
    if sinks_N is not None:
        sinks_KG = sinks_N.astype(jnp.float32).reshape(num_kv_heads, -1) * jnp.float32(LOG2_E)
    out_TKGH = jnp.zeros(q_TKGH.shape, jnp.float32)
    if has_tiles:
        is_tiled_S = (rows.q_lens_S > 0) & ~is_single_S
        new_TKGH = _attend_tiles(
            q_TKGH, kv_pages, rows, is_tiled_S, sinks_KG, options, interpret=interpret
        )
        is_tiled_T = rows.is_token_T & take(is_tiled_S, rows.row_T)
        out_TKGH = jnp.where(is_tiled_T[:, None, None, None], new_TKGH, out_TKGH)
    if has_singles:
        new_SKGH = _attend_single_rows(
            q_TKGH, kv_pages, rows, is_single_S, sinks_KG, options, interpret=interpret
        )
        is_single_T = rows.is_token_T & take(is_single_S, rows.row_T)
        new_TKGH = take(new_SKGH, rows.row_T)
        out_TKGH = jnp.where(is_single_T[:, None, None, None], new_TKGH, out_TKGH)
    if v_scale_K is not None:
        out_TKGH *= v_scale_K.astype(jnp.float32)[None, :, None, None]
    return out_TKGH.astype(q_TNH.dtype).reshape(q_TNH.shape), kv_pages


def _parts(distribution_3: jax.Array | np.ndarray) -> tuple[bool, bool]:
    """Whether the program needs the launch for rows with one new token, and that for tiles."""
    if isinstance(distribution_3, np.ndarray):
        num_decode, _, num_rows = distribution_3.tolist()
        return num_decode > 0, num_decode < num_rows
    return True, True


def _stored(x_TKH: jax.Array, dtype: np.dtype, scale_K: jax.Array | None) -> jax.Array:
    if scale_K is not None:
        x_TKH = x_TKH.astype(jnp.float32) / scale_K.astype(jnp.float32)[None, :, None]
    return x_TKH.astype(dtype)


def _attend_single_rows(
    q_TKGH: jax.Array,
    pages: GpuKVPages,
    rows: Rows,
    is_single_S: jax.Array,
    sinks_KG: jax.Array | None,
    options: Options,
    *,
    interpret: bool,
) -> jax.Array:
    """Rows with one new token; float32 ``[S, K, G, H]``, of which others' rows mean nothing."""
    num_slots, pages_per_row = rows.page_table_SM.shape
    _, num_kv_heads, group_size, head_dim = q_TKGH.shape
    plan = gpu_kernel.plan(
        group_size,
        head_dim,
        max_queries=1,
        warpgroups=1,
        out_dtype=jnp.float32,
        interpret=interpret,
    )
    splits = gpu_work.max_splits(num_slots, num_kv_heads, pages_per_row * pages.page_size)
    num_splits_S = gpu_work.num_splits(options, rows, is_single_S, splits)
    work = gpu_work.list_splits(options, rows, pages.page_size, num_splits_S, splits)
    q_SKQH = _padded(take(q_TKGH, rows.q_starts_S), plan.tile_rows)
    out, lse = gpu_kernel.attend(
        plan,
        options,
        *work,
        rows.page_table_SM,
        q_SKQH,
        pages.keys_PKpH,
        pages.values_PKpH,
        num_outs=num_slots * splits,
    )
    out_SnKGH = out.reshape(num_slots, splits, *out.shape[1:])[:, :, :, :group_size]
    lse_SnKG = lse.reshape(num_slots, splits, *lse.shape[1:])[:, :, :, :group_size]
    is_part_Sn = jnp.arange(splits, dtype=jnp.int32)[None, :] < num_splits_S[:, None]
    lse_SnKG = jnp.where(is_part_Sn[:, :, None, None], lse_SnKG, -jnp.inf)
    out_SnKGH = jnp.where(is_part_Sn[:, :, None, None, None], out_SnKGH, 0.0)

    top_SKG = jnp.maximum(lse_SnKG.max(axis=1), gpu_kernel.NO_TOP)
    if sinks_KG is not None:
        top_SKG = jnp.maximum(top_SKG, sinks_KG[None])
    weights_SnKG = jnp.exp2(lse_SnKG - top_SKG[:, None])
    total_SKG = weights_SnKG.sum(axis=1)
    if sinks_KG is not None:
        total_SKG += jnp.exp2(sinks_KG[None] - top_SKG)
    sums_SKGH = (weights_SnKG[..., None] * out_SnKGH).sum(axis=1)
    return sums_SKGH / jnp.where(total_SKG > 0, total_SKG, 1.0)[..., None]


def _attend_tiles(
    q_TKGH: jax.Array,
    pages: GpuKVPages,
    rows: Rows,
    is_tiled_S: jax.Array,
    sinks_KG: jax.Array | None,
    options: Options,
    *,
    interpret: bool,
) -> jax.Array:
    """Rows in tiles of queries; ``[T, K, G, H]``, of which others' tokens mean nothing."""
    num_tokens, num_kv_heads, group_size, head_dim = q_TKGH.shape
    plan = gpu_kernel.plan(
        group_size,
        head_dim,
        max_queries=num_tokens,
        warpgroups=PREFILL_WARPGROUPS[head_dim],
        out_dtype=q_TKGH.dtype,
        interpret=interpret,
    )
    lanes = plan.tile_queries
    tiles = gpu_work.list_tiles(options, rows, pages.page_size, is_tiled_S, lanes)
    q_JtKGH = take(q_TKGH, tiles.token_Jt)
    q_JKGtH = q_JtKGH.transpose(0, 2, 3, 1, 4)
    num_tiles = q_JKGtH.shape[0]
    q_JKQH = q_JKGtH.reshape(num_tiles, num_kv_heads, group_size * lanes, head_dim)
    out, lse = gpu_kernel.attend(
        plan,
        options,
        *tiles.work,
        rows.page_table_SM,
        _padded(q_JKQH, plan.tile_rows),
        pages.keys_PKpH,
        pages.values_PKpH,
        num_outs=num_tiles,
    )

    def of_tokens(x_JKQ: jax.Array) -> jax.Array:
        shape = (num_tiles, num_kv_heads, group_size, lanes, *x_JKQ.shape[3:])
        x_JKGt = x_JKQ[:, :, : group_size * lanes].reshape(shape)
        return take(jnp.moveaxis(x_JKGt, 3, 1), tiles.tile_T, tiles.lane_T).astype(jnp.float32)

    out_TKGH = of_tokens(out)
    if sinks_KG is None:
        return out_TKGH
    # A sink of weight s among weights of sum w leaves w / (w + s) of the average.
    return out_TKGH * jax.nn.sigmoid((of_tokens(lse) - sinks_KG[None]) * math.log(2))[..., None]


def _padded(q_XKQH: jax.Array, rows: int) -> jax.Array:
    return jnp.pad(q_XKQH, ((0, 0), (0, 0), (0, rows - q_XKQH.shape[2]), (0, 0)))
