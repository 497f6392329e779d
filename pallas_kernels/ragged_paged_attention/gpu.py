"""Ragged paged attention on a Hopper GPU: plain XLA around the kernel of ``gpu_kernel.py``.

New keys and values are written by a scatter first, so that the kernel only reads. Rows with one new
token are split along their length (FlashDecoding) and their parts joined here; rows with more are
cut into tiles of queries, each of which sees its row in one item.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.nonnegative import take
from pallas_kernels.paging import gpu_parts, gpu_work
from pallas_kernels.paging.options import Options
from pallas_kernels.paging.pool import from_storage, stored_tokens
from pallas_kernels.paging.rows import (
    Case,
    Rows,
    case_of,
    describe_rows,
    needed_parts,
    token_pages,
)
from pallas_kernels.paging.softmax import LOG2_E
from pallas_kernels.ragged_paged_attention import gpu_kernel
from pallas_kernels.ragged_paged_attention.gpu_pages import GpuKVPages, write_tokens
from pallas_kernels.ragged_paged_attention.gpu_plan import plan
from pallas_kernels.ragged_paged_attention.gpu_tiles import (
    WARPGROUP_ROWS,
    GpuProblem,
    Operands,
    operands_of,
)
from pallas_kernels.ragged_paged_attention.gpu_unwritten import beside


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
    """Queries and softmax weights are rounded to the operands of the tensor cores (``gpu_plan``):
    the dtype of 16-bit pages, bfloat16 for those of 8 bits, two bfloat16 for float32. So are the
    results of rows with more than one token, unless pages are float32."""
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
    pools = [kv_pages]
    if k_TKH is not None and v_TKH is not None:
        k_TKH, v_TKH = (
            from_storage(stored_tokens(x_TKH, kv_pages.dtype, scale_K), kv_pages.dtype)
            for x_TKH, scale_K in ((k_TKH, k_scale_K), (v_TKH, v_scale_K))
        )
        if options.update_kv_cache:
            page_T, offset_T = token_pages(rows, page_size)
            kv_pages = write_tokens(kv_pages, k_TKH, v_TKH, page_T, offset_T)
            pools = [kv_pages]
        else:
            copies, rows = beside(kv_pages, rows, k_TKH, v_TKH)
            pools = [kv_pages, copies]

    groups = _Groups(num_heads // num_kv_heads)
    q_TKGH = q_TNH.reshape(num_tokens, num_kv_heads, -1, head_dim).astype(jnp.float32)
    if k_scale_K is not None:
        q_TKGH *= k_scale_K.astype(jnp.float32)[None, :, None, None]
    q_TRcGH = _split(groups.of_heads(q_TKGH), operands_of(kv_pages.dtype))
    sinks_RG = None
    if sinks_N is not None:
        sinks_KG = sinks_N.astype(jnp.float32).reshape(num_kv_heads, -1) * jnp.float32(LOG2_E)
        sinks_RG = groups.of_heads(sinks_KG[None, :, :, None])[0, :, :, 0]

    case = case_of(distribution_3)
    has_singles, has_tiles = needed_parts(distribution_3)
    is_single_S = (rows.q_lens_S == 1) & has_singles
    out_TRGH = jnp.zeros((num_tokens, *q_TRcGH.shape[1:2], *q_TRcGH.shape[3:]), jnp.float32)
    if has_tiles:
        is_tiled_S = (rows.q_lens_S > 0) & ~is_single_S
        new_TRGH = _attend_tiles(
            q_TRcGH, pools, rows, is_tiled_S, sinks_RG, options, case, interpret=interpret
        )
        is_tiled_T = rows.is_token_T & take(is_tiled_S, rows.row_T)
        out_TRGH = jnp.where(is_tiled_T[:, None, None, None], new_TRGH, out_TRGH)
    if has_singles:
        new_SRGH = _attend_single_rows(
            q_TRcGH, pools, rows, is_single_S, sinks_RG, options, case, interpret=interpret
        )
        is_single_T = rows.is_token_T & take(is_single_S, rows.row_T)
        new_TRGH = take(new_SRGH, rows.row_T)
        out_TRGH = jnp.where(is_single_T[:, None, None, None], new_TRGH, out_TRGH)
    out_TKGH = groups.to_heads(out_TRGH, num_kv_heads)
    if v_scale_K is not None:
        out_TKGH *= v_scale_K.astype(jnp.float32)[None, :, None, None]
    return out_TKGH.astype(q_TNH.dtype).reshape(q_TNH.shape), kv_pages


@dataclass(frozen=True)
class _Groups:
    """The ``num_heads`` query heads of a kv head, cut into groups that a tile can hold."""

    num_heads: int

    @property
    def count(self) -> int:
        return -(-self.num_heads // WARPGROUP_ROWS)

    @property
    def size(self) -> int:
        return -(-self.num_heads // self.count)

    def of_heads(self, x_TKGH: jax.Array) -> jax.Array:
        missing = self.count * self.size - self.num_heads
        x_TKGH = jnp.pad(x_TKGH, ((0, 0), (0, 0), (0, missing), (0, 0)))
        return x_TKGH.reshape(x_TKGH.shape[0], -1, self.size, x_TKGH.shape[3])

    def to_heads(self, x_TRGH: jax.Array, num_kv_heads: int) -> jax.Array:
        shape = (x_TRGH.shape[0], num_kv_heads, self.count * self.size, x_TRGH.shape[3])
        return x_TRGH.reshape(shape)[:, :, : self.num_heads]


def _split(q_TRGH: jax.Array, operands: Operands) -> jax.Array:
    """Float32 queries as ``operands.parts``, side by side."""
    if operands.parts == 1:
        return q_TRGH[:, :, None].astype(operands.dtype)
    parts = []
    for _ in range(operands.parts):
        # XLA may skip a mere conversion to fewer bits and back; this it may not.
        kind = jnp.finfo(operands.dtype)
        parts.append(jax.lax.reduce_precision(q_TRGH, kind.nexp, kind.nmant))
        q_TRGH = q_TRGH - parts[-1]
    return jnp.stack(parts, axis=2).astype(operands.dtype)


def _attend_single_rows(
    q_TRcGH: jax.Array,
    pools: list[GpuKVPages],
    rows: Rows,
    is_single_S: jax.Array,
    sinks_RG: jax.Array | None,
    options: Options,
    case: Case,
    *,
    interpret: bool,
) -> jax.Array:
    """Rows with one new token; float32 ``[S, R, G, H]``, of which others' rows mean nothing."""
    num_slots, pages_per_row = rows.page_table_SM.shape
    _, num_groups, _, group_size, _ = q_TRcGH.shape
    page_size = pools[0].page_size
    problem = _problem(
        q_TRcGH, pools, rows, options, case, max_queries=1, out_dtype=jnp.dtype(jnp.float32)
    )
    launch = plan(problem, interpret=interpret)
    tiles = launch.tiles
    splits = gpu_work.max_splits(tiles, num_slots, num_groups, pages_per_row * page_size)
    num_splits_S = gpu_work.num_splits(tiles, options, rows, is_single_S, splits)
    work = gpu_work.list_splits(tiles, options, rows, page_size, num_splits_S, splits)
    out, lse = gpu_kernel.attend(
        launch,
        options,
        *work,
        rows.page_table_SM,
        _padded(take(q_TRcGH, rows.q_starts_S), launch.tile_rows),
        pools,
        num_outs=num_slots * splits,
    )
    out_SnRGH, lse_SnRG = (
        x.reshape(num_slots, splits, *x.shape[1:])[:, :, :, :group_size] for x in (out, lse)
    )
    return gpu_parts.join_splits(out_SnRGH, lse_SnRG, num_splits_S, sinks_RG).out


def _attend_tiles(
    q_TRcGH: jax.Array,
    pools: list[GpuKVPages],
    rows: Rows,
    is_tiled_S: jax.Array,
    sinks_RG: jax.Array | None,
    options: Options,
    case: Case,
    *,
    interpret: bool,
) -> jax.Array:
    """Rows in tiles of queries; ``[T, R, G, H]``, of which others' tokens mean nothing."""
    num_tokens, num_groups, parts, group_size, head_dim = q_TRcGH.shape
    out_dtype = jnp.dtype(jnp.float32 if parts > 1 else q_TRcGH.dtype)
    problem = _problem(
        q_TRcGH, pools, rows, options, case, max_queries=num_tokens, out_dtype=out_dtype
    )
    launch = plan(problem, interpret=interpret)
    lanes = launch.tile_queries
    listed = gpu_work.list_tiles(launch.tiles, options, rows, pools[0].page_size, is_tiled_S, lanes)
    q_JtRcGH = take(q_TRcGH, listed.token_Jt)
    num_tiles = q_JtRcGH.shape[0]
    q_JRcQH = q_JtRcGH.transpose(0, 2, 3, 4, 1, 5).reshape(
        num_tiles, num_groups, parts, group_size * lanes, head_dim
    )
    out, lse = gpu_kernel.attend(
        launch,
        options,
        *listed.work,
        rows.page_table_SM,
        _padded(q_JRcQH, launch.tile_rows),
        pools,
        num_outs=num_tiles,
    )

    def of_tokens(x_JRQ: jax.Array) -> jax.Array:
        shape = (num_tiles, num_groups, group_size, lanes, *x_JRQ.shape[3:])
        x_JRGt = x_JRQ[:, :, : group_size * lanes].reshape(shape)
        return take(jnp.moveaxis(x_JRGt, 3, 1), listed.tile_T, listed.lane_T).astype(jnp.float32)

    out_TRGH = of_tokens(out)
    if sinks_RG is None:
        return out_TRGH
    # A sink of weight s among weights of sum w leaves w / (w + s) of the average.
    return out_TRGH * jax.nn.sigmoid((of_tokens(lse) - sinks_RG[None]) * math.log(2))[..., None]


def _problem(
    q_TRcGH: jax.Array,
    pools: list[GpuKVPages],
    rows: Rows,
    options: Options,
    case: Case,
    *,
    max_queries: int,
    out_dtype: np.dtype,
) -> GpuProblem:
    _, num_groups, _, group_size, head_dim = q_TRcGH.shape
    num_slots, pages_per_row = rows.page_table_SM.shape
    num_positions = pages_per_row * pools[0].page_size
    return GpuProblem(
        case=case,
        max_queries=max_queries,
        num_slots=num_slots,
        num_positions=min(num_positions, options.sliding_window or num_positions),
        num_groups=num_groups,
        group_size=group_size,
        head_dim=head_dim,
        pages_dtype=pools[0].dtype.name,
        out_dtype=out_dtype.name,
    )


def _padded(q_XRcQH: jax.Array, rows: int) -> jax.Array:
    return jnp.pad(q_XRcQH, ((0, 0), (0, 0), (0, 0), (0, rows - q_XRcQH.shape[3]), (0, 0)))
