"""Latent attention on a Hopper GPU: plain XLA around the kernel of ``gpu_kernel.py``.

New latents are written by a scatter first, so that the kernel only reads; where they must not be
written, they go into pages of their own (``gpu_aside.py``). Rows with one new token are split along
their length (FlashDecoding) and their parts joined here; rows with more are cut into tiles of
queries. Heads are taken in groups of up to 64, the rows of a tile.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.latent_attention import gpu_aside, gpu_kernel, gpu_tuning
from pallas_kernels.latent_attention.gpu_pages import GpuLatentPages, write_tokens
from pallas_kernels.nonnegative import take
from pallas_kernels.paging import gpu_parts, gpu_work
from pallas_kernels.paging.gpu_parts import Average
from pallas_kernels.paging.options import Options
from pallas_kernels.paging.rows import (
    Case,
    Rows,
    case_of,
    describe_rows,
    needed_parts,
    token_pages,
)
from pallas_kernels.paging.softmax import NO_TOP


def latent_attention(
    q_latent_TNR: jax.Array,
    q_rope_TNr: jax.Array,
    latent_TR: jax.Array | None,
    rope_Tr: jax.Array | None,
    latent_pages: GpuLatentPages,
    kv_lens_S: jax.Array,
    page_table_SM: jax.Array,
    cu_q_lens_S1: jax.Array,
    distribution_3: jax.Array,
    options: Options,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, GpuLatentPages]:
    """Queries are rounded to the dtype of the pages, as are the softmax weights."""
    page_size = latent_pages.page_size
    rows = describe_rows(
        q_latent_TNR.shape[0],
        latent_pages.num_pages,
        page_size,
        kv_lens_S,
        page_table_SM,
        cu_q_lens_S1,
        distribution_3,
    )
    dtype = q_latent_TNR.dtype
    q_latent_TNR, q_rope_TNr = (x.astype(latent_pages.dtype) for x in (q_latent_TNR, q_rope_TNr))
    has_singles, has_tiles = needed_parts(distribution_3)
    call = _Call(
        q_latent_TNR,
        q_rope_TNr,
        options,
        has_singles,
        has_tiles,
        case_of(distribution_3),
        interpret,
    )
    if latent_TR is None or rope_Tr is None:
        return call.attend(latent_pages, rows, dtype).out.astype(dtype), latent_pages
    if options.update_kv_cache:
        place = token_pages(rows, page_size)
        latent_pages = write_tokens(latent_pages, latent_TR, rope_Tr, *place)
        return call.attend(latent_pages, rows, dtype).out.astype(dtype), latent_pages

    cached, aside, aside_pages = gpu_aside.lay_aside(latent_pages, rows, latent_TR, rope_Tr)
    # All that lies before the pages laid aside is before every new token.
    before = call._replace(options=replace(options, causal=False))
    parts = (
        before.attend(latent_pages, cached, jnp.float32),
        call.attend(aside_pages, aside, jnp.float32),
    )
    joined = gpu_parts.join(*(jnp.stack(x, axis=1) for x in zip(*parts, strict=True)))
    return joined.out.astype(dtype), latent_pages


class _Call(NamedTuple):
    """What does not depend on the pages that are read."""

    q_latent_TNR: jax.Array
    q_rope_TNr: jax.Array
    options: Options
    has_singles: bool
    has_tiles: bool
    case: Case
    interpret: bool

    @property
    def num_groups(self) -> int:
        return -(-self.q_latent_TNR.shape[1] // gpu_tuning.TILE)

    @property
    def group_size(self) -> int:
        return -(-self.q_latent_TNR.shape[1] // self.num_groups)

    def attend(self, pages: GpuLatentPages, rows: Rows, dtype: Any) -> Average:
        """Zero for tokens of no row. ``dtype`` is that of the result, which may be returned in a
        wider one."""
        num_tokens, num_heads, _ = self.q_latent_TNR.shape
        is_single_S = (rows.q_lens_S == 1) & self.has_singles
        average = Average(
            jnp.zeros(self.q_latent_TNR.shape, jnp.float32),
            jnp.full((num_tokens, num_heads), NO_TOP, jnp.float32),
        )
        if self.has_tiles:
            is_tiled_S = (rows.q_lens_S > 0) & ~is_single_S
            tiled = self._attend_tiles(pages, rows, is_tiled_S, dtype)
            average = _choose(rows.is_token_T & take(is_tiled_S, rows.row_T), tiled, average)
        if self.has_singles:
            single = self._attend_single_rows(pages, rows, is_single_S)
            single = Average(*(take(x, rows.row_T) for x in single))
            average = _choose(rows.is_token_T & take(is_single_S, rows.row_T), single, average)
        return average

    def _attend_single_rows(
        self, pages: GpuLatentPages, rows: Rows, is_single_S: jax.Array
    ) -> Average:
        """Rows with one new token, by slot; others' rows mean nothing."""
        num_slots, pages_per_row = rows.page_table_SM.shape
        plan = self._plan(pages, rows, max_queries=1, out_dtype=jnp.float32)
        num_positions = pages_per_row * pages.page_size
        splits = gpu_work.max_splits(plan.tiles, num_slots, self.num_groups, num_positions)
        num_splits_S = gpu_work.num_splits(plan.tiles, self.options, rows, is_single_S, splits)
        work = gpu_work.list_splits(
            plan.tiles, self.options, rows, pages.page_size, num_splits_S, splits
        )
        out, lse = self._run(
            plan, work, pages, rows, rows.q_starts_S[:, None], num_outs=num_slots * splits
        )
        out_SnNR, lse_SnN = (
            x_YtN.reshape(num_slots, splits, *x_YtN.shape[2:])
            for x_YtN in (self._untiled(plan, x) for x in (out, lse))
        )
        return gpu_parts.join_splits(out_SnNR, lse_SnN, num_splits_S)

    def _attend_tiles(
        self, pages: GpuLatentPages, rows: Rows, is_tiled_S: jax.Array, dtype: Any
    ) -> Average:
        """Rows in tiles of queries, by token; others' tokens mean nothing."""
        num_tokens = self.q_latent_TNR.shape[0]
        out_dtype = pages.dtype if dtype == pages.dtype else jnp.float32
        plan = self._plan(pages, rows, max_queries=num_tokens, out_dtype=out_dtype)
        lanes = plan.tiles.queries
        tiles = gpu_work.list_tiles(
            plan.tiles, self.options, rows, pages.page_size, is_tiled_S, lanes
        )
        num_tiles = tiles.token_Jt.shape[0]
        out_lse = self._run(plan, tiles.work, pages, rows, tiles.token_Jt, num_outs=num_tiles)
        return Average(
            *(
                take(self._untiled(plan, x), tiles.tile_T, tiles.lane_T).astype(jnp.float32)
                for x in out_lse
            )
        )

    def _plan(
        self, pages: GpuLatentPages, rows: Rows, *, max_queries: int, out_dtype: Any
    ) -> gpu_kernel.Plan:
        num_slots, pages_per_row = rows.page_table_SM.shape
        problem = gpu_tuning.Problem(
            case=self.case,
            max_queries=max_queries,
            num_slots=num_slots,
            num_positions=pages_per_row * pages.page_size,
            num_groups=self.num_groups,
            group_size=self.group_size,
            latent_rank=pages.latent_rank,
            rope_dim=pages.rope_dim,
        )
        return gpu_kernel.Plan(
            tiles=gpu_tuning.tiles_for(problem),
            latent_rank=pages.latent_rank,
            rope_dim=pages.rope_dim,
            out_dtype=out_dtype,
            interpret=self.interpret,
        )

    def _run(
        self,
        plan: gpu_kernel.Plan,
        work: gpu_work.Work,
        pages: GpuLatentPages,
        rows: Rows,
        token_Xt: jax.Array,
        *,
        num_outs: int,
    ) -> tuple[jax.Array, jax.Array]:
        """The items of ``work`` on tiles of the queries of ``token_Xt``."""
        return gpu_kernel.attend(
            plan,
            self.options,
            work.num_items_1,
            work.items_I8,
            rows.page_table_SM,
            self._tiled(plan, take(self.q_latent_TNR, token_Xt)),
            self._tiled(plan, take(self.q_rope_TNr, token_Xt)),
            pages.latent_PpR,
            pages.rope_Ppr,
            num_outs=num_outs,
        )

    def _tiled(self, plan: gpu_kernel.Plan, q_XtNw: jax.Array) -> jax.Array:
        """Queries ``[X, t, N, w]`` as tiles ``[X, G, Q, w]``: groups of heads, padded by zeros."""
        num_tiles, lanes, num_heads, width = q_XtNw.shape
        groups, group_size = self.num_groups, self.group_size
        more = groups * group_size - num_heads
        q_XNtw = jnp.pad(q_XtNw.transpose(0, 2, 1, 3), ((0, 0), (0, more), (0, 0), (0, 0)))
        q_XGQw = q_XNtw.reshape(num_tiles, groups, group_size * lanes, width)
        more = plan.tiles.rows - group_size * lanes
        return jnp.pad(q_XGQw, ((0, 0), (0, 0), (0, more), (0, 0)))

    def _untiled(self, plan: gpu_kernel.Plan, x_XGQw: jax.Array) -> jax.Array:
        """The inverse of ``_tiled``; also without the last axis."""
        num_tiles, groups, _, *width = x_XGQw.shape
        rows = self.group_size * plan.tiles.queries
        shape = (num_tiles, groups * self.group_size, plan.tiles.queries, *width)
        x_XNtw = x_XGQw[:, :, :rows].reshape(shape)[:, : self.q_latent_TNR.shape[1]]
        return jnp.moveaxis(x_XNtw, 2, 1)


def _choose(is_new_T: jax.Array, new: Average, old: Average) -> Average:
    return Average(
        jnp.where(is_new_T[:, None, None], new.out, old.out),
        jnp.where(is_new_T[:, None], new.lse, old.lse),
    )
