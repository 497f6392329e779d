"""Ragged paged attention as one Pallas kernel for TPU.

The kernel runs once, and its loops follow the batch (as in Ragged Paged Attention, arXiv
2604.15464): first every new key and value goes into its page, then short rows (those whose queries
fill one register) and long rows walk over the blocks of positions that they can see, with the
online softmax of arXiv 1805.02867 in float32. While a block is computed, the next one is on its
way, be it of the same row or of the next.

What is copied is whole registers and whole pages; ``paging/tpu_rows.py`` says where from.
"""

import functools
import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.nonnegative import take
from pallas_kernels.paging import tpu_rows
from pallas_kernels.paging.options import Options
from pallas_kernels.paging.pool import rounded_tokens
from pallas_kernels.paging.rows import Case, case_of, describe_rows
from pallas_kernels.paging.tpu_registers import LANES, SUBLANES
from pallas_kernels.ragged_paged_attention import tpu_pages
from pallas_kernels.ragged_paged_attention.tpu_kernel import Refs, Shape, run_kernel
from pallas_kernels.ragged_paged_attention.tpu_pages import TpuKVPages
from pallas_kernels.ragged_paged_attention.tpu_tiles import TpuCall, tpu_vmem_bytes
from pallas_kernels.ragged_paged_attention.tpu_tuning import tpu_tiles_for


def ragged_paged_attention(*arguments: Any, **options: Any) -> tuple[jax.Array, TpuKVPages]:
    """``attend_and_count`` without the count."""
    out_TNH, pages, _ = attend_and_count(*arguments, **{**options, "counts": False})
    return out_TNH, pages


def attend_and_count(
    q_TNH: jax.Array,
    k_TKH: jax.Array | None,
    v_TKH: jax.Array | None,
    kv_pages: TpuKVPages,
    kv_lens_S: jax.Array,
    page_table_SM: jax.Array,
    cu_q_lens_S1: jax.Array,
    distribution_3: jax.Array,
    sinks_N: jax.Array | None,
    k_scale_K: jax.Array | None,
    v_scale_K: jax.Array | None,
    options: Options,
    interpret: bool | pltpu.InterpretParams = False,
    counts: bool = True,
) -> tuple[jax.Array, TpuKVPages, jax.Array | None]:
    """Also returns how many pages were fetched to attend over them, int32 ``[1]``, each as often
    as there are groups of kv heads."""
    num_tokens = q_TNH.shape[0]
    num_slots, pages_per_row = page_table_SM.shape
    call = _call_of(q_TNH, kv_pages, k_TKH, case_of(distribution_3), options)
    shape = Shape(
        options=options,
        call=call,
        tiles=tpu_tiles_for(call).fit(call, num_tokens, pages_per_row),
        has_short=call.case != "prefill",
        has_long=call.case != "decode",
        has_sinks=sinks_N is not None,
        has_new=k_TKH is not None,
        counts=counts,
        out_dtype=jnp.dtype(jnp.bfloat16 if call.is_narrow else jnp.float32),
        pages_dtype=kv_pages.dtype,
    )
    rows = describe_rows(
        num_tokens,
        kv_pages.num_pages,
        kv_pages.page_size,
        kv_lens_S,
        page_table_SM,
        cu_q_lens_S1,
        jnp.asarray(distribution_3),
    )
    # Every row wastes less than a unit of places, and none needs more units than it has tokens.
    unit = shape.short_tokens
    num_units = min(num_tokens, -(-(num_tokens + num_slots * (unit - 1)) // unit))
    order = tpu_rows.order_rows(
        rows,
        unit=unit,
        num_places=num_units * unit + shape.long_tokens - unit,
        has_short=shape.has_short,
    )
    tiles = tpu_rows.tile_new_positions(
        rows,
        order,
        page_size=kv_pages.page_size,
        tile=shape.tile,
        margin=shape.positions if shape.merges else 0,
    )
    q = _queries(q_TNH, order.source_t, shape)
    if k_TKH is None or v_TKH is None:
        new = jnp.zeros((call.num_kv_heads, shape.tile, LANES), kv_pages.dtype)
    else:
        new_TKW = tpu_pages.join(
            rounded_tokens(k_TKH, kv_pages.dtype, k_scale_K),
            rounded_tokens(v_TKH, kv_pages.dtype, v_scale_K),
        )
        new = take(new_TKW, tiles.source_t).transpose((1, 0, 2))
    out, pages, num_fetched_1 = _call(
        shape,
        num_tokens,
        pages_per_row,
        interpret,
        order,
        tiles,
        _scales(k_scale_K, v_scale_K, shape),
        _sinks(sinks_N, shape),
        tpu_rows.rows_of_table(rows.page_table_SM),
        q,
        new,
        kv_pages.kv_PKpW,
    )
    out_TNH = _tokens(out, order.place_T, shape)
    is_attended_T = rows.is_token_T
    if not shape.has_long:  # Nobody writes the results of a row that is long all the same.
        is_attended_T &= take(rows.q_lens_S <= unit, rows.row_T)
    out_TNH = jnp.where(is_attended_T[:, None, None], out_TNH, jnp.zeros((), out_TNH.dtype))
    written = TpuKVPages(kv_PKpW=pages, head_dim=kv_pages.head_dim)
    return out_TNH[:, : q_TNH.shape[1]].astype(q_TNH.dtype), written, num_fetched_1


def _call_of(
    q_TNH: jax.Array, kv_pages: TpuKVPages, k_TKH: jax.Array | None, case: Case, options: Options
) -> TpuCall:
    """What tiles depend on. If all tokens fill one register, all rows are short."""
    num_tokens, num_heads, head_dim = q_TNH.shape
    call = TpuCall(
        case=case,
        page_size=kv_pages.page_size,
        num_kv_heads=kv_pages.num_kv_heads,
        group_size=num_heads // kv_pages.num_kv_heads,
        head_dim=head_dim,
        q_dtype=q_TNH.dtype.name,
        pages_dtype=kv_pages.dtype.name,
        is_unwritten=k_TKH is not None and not options.update_kv_cache,
    )
    return replace(call, case="decode") if num_tokens <= call.short_tokens else call


def _queries(q_TNH: jax.Array, source_t: jax.Array, shape: Shape) -> jax.Array:
    """The queries of one kv head as the rows of a matrix: ``[K, tokens * group, key_width]``."""
    call = shape.call
    q_tKGH = take(q_TNH, source_t).reshape(-1, call.num_kv_heads, call.group_size, call.head_dim)
    padding = (0, call.group - call.group_size), (0, shape.lanes.key_width - call.head_dim)
    q_tKGH = jnp.pad(q_tKGH.astype(shape.compute_dtype), ((0, 0), (0, 0), *padding))
    q_KtGH = q_tKGH.transpose((1, 0, 2, 3))
    return q_KtGH.reshape(call.num_kv_heads, -1, shape.lanes.key_width)


def _tokens(out: jax.Array, place_T: jax.Array, shape: Shape) -> jax.Array:
    """The kernel's results ``[K, tokens * group, lanes]`` as ``[T, K * G, H]``."""
    call, start = shape.call, shape.lanes.value_offset
    out_KtGW = out.reshape(call.num_kv_heads, -1, call.group, shape.lanes.value_width)
    out_KtGH = out_KtGW[:, :, : call.group_size, start : start + call.head_dim]
    out_TKGH = take(out_KtGH.transpose((1, 0, 2, 3)), place_T)
    return out_TKGH.reshape(place_T.size, -1, call.head_dim)


def _scales(k_scale_K: jax.Array | None, v_scale_K: jax.Array | None, shape: Shape) -> jax.Array:
    """What logits, and then averages of values, are multiplied by: float32 ``[2 * K]``."""
    ones_K = jnp.ones(shape.call.num_kv_heads, jnp.float32)
    k_scale_K = ones_K if k_scale_K is None else k_scale_K.astype(jnp.float32)
    v_scale_K = ones_K if v_scale_K is None else v_scale_K.astype(jnp.float32)
    return jnp.concatenate([k_scale_K * jnp.float32(shape.options.scale), v_scale_K])


def _sinks(sinks_N: jax.Array | None, shape: Shape) -> jax.Array:
    """The sink of every row of the matrix of queries of a short block: ``[K, rows, 128]``."""
    rows = shape.call.short_rows
    if sinks_N is None:
        return jnp.zeros((shape.call.num_kv_heads, SUBLANES, LANES), jnp.float32)
    sinks_KG = sinks_N.astype(jnp.float32).reshape(shape.call.num_kv_heads, -1)
    sinks_KG = jnp.pad(sinks_KG, ((0, 0), (0, shape.group - sinks_KG.shape[1])))
    sinks_Kr = jnp.tile(sinks_KG, (1, shape.short_tokens))
    return jnp.broadcast_to(sinks_Kr[:, :, None], (shape.call.num_kv_heads, rows, LANES))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _call(
    shape: Shape,
    num_tokens: int,
    pages_per_row: int,
    interpret: bool | pltpu.InterpretParams,
    order: tpu_rows.Order,
    tiles: tpu_rows.NewTiles,
    scales: jax.Array,
    sinks: jax.Array,
    table: jax.Array,
    q: jax.Array,
    new: jax.Array,
    pages: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """The kernel itself; compiled for itself, so that it is traced once for all layers."""
    prefetched = (
        order.counts_2,
        order.slot_S,
        order.q_start_S,
        order.q_len_S,
        order.kv_len_S,
        tiles.start_S,
        *tiles.writes,
    )
    inputs = (scales, sinks, table, q, new, pages)
    hbm = pl.BlockSpec(memory_space=pl.ANY)
    smem = pl.BlockSpec(memory_space=pltpu.SMEM)
    sinks_spec = pl.BlockSpec((shape.kv_heads, *sinks.shape[1:]), lambda group, *_: (group, 0, 0))
    out = jax.ShapeDtypeStruct((*q.shape[:2], shape.lanes.value_width), shape.out_dtype)
    outputs, out_specs, aliases = [out], [hbm], {}
    if shape.writes:
        outputs.append(jax.ShapeDtypeStruct(pages.shape, pages.dtype))
        out_specs.append(hbm)
        aliases = {len(prefetched) + len(inputs) - 1: 1}
    if shape.counts:
        outputs.append(jax.ShapeDtypeStruct((1,), jnp.int32))
        out_specs.append(smem)

    def kernel(*refs: Any) -> None:
        *arrays, pages_ref = refs[: len(prefetched) + len(inputs)]
        out_ref, *others = refs[len(prefetched) + len(inputs) :]
        # Pages that are written are read where they are written.
        pages_ref = others[0] if shape.writes else pages_ref
        num_fetched_ref = others[-1] if shape.counts else None
        run_kernel(shape, Refs._make([*arrays, pages_ref, out_ref, num_fetched_ref]))

    out, *others = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(prefetched),
            grid=(shape.call.num_kv_heads // shape.kv_heads,),
            in_specs=[smem, sinks_spec, hbm, hbm, hbm, hbm],
            out_specs=out_specs,
        ),
        out_shape=outputs,
        input_output_aliases=aliases,
        compiler_params=pltpu.CompilerParams(
            # Cores share nothing but what they read. A count would be.
            dimension_semantics=("arbitrary" if shape.counts else "parallel",),
            vmem_limit_bytes=tpu_vmem_bytes(shape.call, shape.tiles),
        ),
        cost_estimate=_cost(shape, q, out, pages, table.shape[0], num_tokens, pages_per_row),
        interpret=pltpu.InterpretParams() if interpret is True else interpret,
        name="ragged_paged_attention",
    )(*prefetched, *inputs)
    return out, others[0] if shape.writes else pages, others[-1] if shape.counts else None


def _cost(
    shape: Shape,
    q: jax.Array,
    out: jax.ShapeDtypeStruct,
    pages: jax.Array,
    num_slots: int,
    num_tokens: int,
    pages_per_row: int,
) -> pl.CostEstimate:
    """Half of what the shapes allow: rows of all lengths up to that of their table."""
    num_pages = min(pages.shape[0], num_slots * pages_per_row)
    page_bytes = math.prod(pages.shape[1:]) * pages.dtype.itemsize
    logits = q.shape[0] * num_tokens * shape.group * pages_per_row * shape.page_size // 2
    queries = q.size * q.dtype.itemsize + out.size * out.dtype.itemsize
    return pl.CostEstimate(
        flops=4 * logits * shape.call.head_dim,
        transcendentals=logits,
        bytes_accessed=num_pages * page_bytes // 2 + queries,
    )
