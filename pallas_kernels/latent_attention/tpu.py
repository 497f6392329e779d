"""Latent attention as one Pallas kernel for TPU.

The kernel runs once, and its loops follow the batch: first every new latent goes into its page,
then rows of one token and rows of many walk over the blocks of positions that they can see, with
the online softmax of arXiv 1805.02867 in float32. While a block is computed, the next one is on its
way, be it of the same row or of the next.

Queries and results are copied where they lie: the heads of a token fill whole registers, so that a
row may begin anywhere. Only the new latents are laid out anew, by ``paging/tpu_rows.py``.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.latent_attention import tpu_tuning
from pallas_kernels.latent_attention.tpu_kernel import Block, Refs, Shape, run_kernel
from pallas_kernels.latent_attention.tpu_pages import TpuLatentPages
from pallas_kernels.latent_attention.tpu_write import in_tiles
from pallas_kernels.paging import tpu_rows
from pallas_kernels.paging.options import Options
from pallas_kernels.paging.rows import Case, case_of, describe_rows
from pallas_kernels.paging.tpu_fetch import MAX_PAGES
from pallas_kernels.paging.tpu_registers import LANES, align, rows_of


def latent_attention(*arguments: Any, **options: Any) -> tuple[jax.Array, TpuLatentPages]:
    """``attend_and_count`` without the count."""
    out_TNR, pages, _ = attend_and_count(*arguments, **options)
    return out_TNR, pages


def attend_and_count(
    q_latent_TNR: jax.Array,
    q_rope_TNr: jax.Array,
    latent_TR: jax.Array | None,
    rope_Tr: jax.Array | None,
    latent_pages: TpuLatentPages,
    kv_lens_S: jax.Array,
    page_table_SM: jax.Array,
    cu_q_lens_S1: jax.Array,
    distribution_3: jax.Array,
    options: Options,
    interpret: bool | pltpu.InterpretParams = False,
) -> tuple[jax.Array, TpuLatentPages, jax.Array]:
    """Also returns how many pages were fetched to attend over them, int32 ``[1]``."""
    num_tokens, num_heads, latent_rank = q_latent_TNR.shape
    pages_per_row = page_table_SM.shape[1]
    case = case_of(distribution_3)
    has_new = latent_TR is not None
    shape = _shape_of(q_latent_TNR, latent_pages, case, has_new, pages_per_row, options)
    rows = describe_rows(
        num_tokens,
        latent_pages.num_pages,
        latent_pages.page_size,
        kv_lens_S,
        page_table_SM,
        cu_q_lens_S1,
        jnp.asarray(distribution_3),
    )
    # Nothing of the layout that this makes for queries is used, and the compiler drops it.
    order = tpu_rows.order_rows(rows, unit=shape.short.tokens, num_places=1)
    tiles = tpu_rows.tile_new_positions(
        rows,
        order,
        page_size=latent_pages.page_size,
        tile=shape.tile,
        margin=shape.most_positions if shape.merges else 0,
    )
    if latent_TR is None or rope_Tr is None:
        new = jnp.zeros((shape.tile, LANES), latent_pages.dtype)
    else:
        new = in_tiles(latent_TR, rope_Tr, tiles, latent_pages.dtype)
    out, pages, num_fetched_1 = _call(
        shape,
        case == "decode" or num_tokens <= shape.short.tokens,
        pages_per_row,
        interpret,
        order,
        tiles,
        tpu_rows.rows_of_table(rows.page_table_SM),
        _queries(q_latent_TNR, q_rope_TNr, shape),
        new,
        latent_pages.latents_PpW,
    )
    out_TNR = out.reshape(num_tokens, shape.num_heads, -1)[:, :num_heads, :latent_rank]
    return out_TNR.astype(q_latent_TNR.dtype), latent_pages.replace(pages), num_fetched_1


def _shape_of(
    q_latent_TNR: jax.Array,
    latent_pages: TpuLatentPages,
    case: Case,
    has_new: bool,
    pages_per_row: int,
    options: Options,
) -> Shape:
    num_tokens, num_heads, latent_rank = q_latent_TNR.shape
    is_narrow = q_latent_TNR.dtype == jnp.bfloat16
    narrow, wide = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
    compute_dtype = narrow if is_narrow and latent_pages.dtype != jnp.float32 else wide
    out_dtype = narrow if is_narrow else wide
    num_heads = align(num_heads, max(rows_of(compute_dtype), rows_of(out_dtype)))
    page_size = latent_pages.page_size
    tiles = tpu_tuning.tiles_for(
        tpu_tuning.Problem(
            case=case,
            num_heads=num_heads,
            width=latent_pages.latents_PpW.shape[2],
            page_size=page_size,
            itemsize=latent_pages.dtype.itemsize,
            q_itemsize=compute_dtype.itemsize,
            num_tokens=num_tokens,
            pages_per_row=pages_per_row,
            is_unwritten=has_new and not options.update_kv_cache,
        )
    )
    return Shape(
        options=options,
        num_heads=num_heads,
        latent_rank=latent_rank,
        width=latent_pages.latents_PpW.shape[2],
        page_size=page_size,
        short=_block(tiles.short_tokens, tiles.short_positions, page_size),
        long=_block(tiles.long_tokens, tiles.long_positions, page_size),
        has_new=has_new,
        compute_dtype=compute_dtype,
        out_dtype=out_dtype,
        pages_dtype=latent_pages.dtype,
    )


def _block(tokens: int, positions: int, page_size: int) -> Block:
    return Block(tokens, min(MAX_PAGES, max(1, positions // page_size)))


def _queries(q_latent_TNR: jax.Array, q_rope_TNr: jax.Array, shape: Shape) -> tuple[jax.Array, ...]:
    """The queries as matrices ``[tokens * heads, lanes]``, in the parts of ``Shape.parts``."""
    num_heads = q_latent_TNR.shape[1]
    parts: tuple[jax.Array, ...] = (q_latent_TNR, q_rope_TNr)
    if len(shape.parts) == 1:
        parts = (jnp.concatenate(parts, axis=-1),)

    def matrix(x: jax.Array, width: int) -> jax.Array:
        padding = (0, 0), (0, shape.num_heads - num_heads), (0, width - x.shape[2])
        return jnp.pad(x.astype(shape.compute_dtype), padding).reshape(-1, width)

    return tuple(matrix(x, part.width) for x, part in zip(parts, shape.parts, strict=True))


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _call(
    shape: Shape,
    only_short: bool,
    pages_per_row: int,
    interpret: bool | pltpu.InterpretParams,
    order: tpu_rows.Order,
    tiles: tpu_rows.NewTiles,
    table: jax.Array,
    queries: tuple[jax.Array, ...],
    new: jax.Array,
    pages: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The kernel itself; compiled for itself, so that it is traced once for all layers."""
    prefetched = (
        order.counts_2,
        order.slot_S,
        order.first_token_S,
        order.q_len_S,
        order.kv_len_S,
        tiles.start_S,
        *tiles.writes,
    )
    out = jax.ShapeDtypeStruct((queries[0].shape[0], shape.value_width), shape.out_dtype)
    # What no row writes stays zero. To blank it afterwards would read and write all results once
    # more, in memory that some compilers do not share with them.
    nothing = jnp.zeros(out.shape, out.dtype)
    inputs = (table, new, *queries, pages, nothing)
    num_inputs = len(prefetched) + len(inputs)
    pages_place, out_place = num_inputs - 2, num_inputs - 1
    hbm = pl.BlockSpec(memory_space=pl.ANY)
    outputs = [out, jax.ShapeDtypeStruct((1,), jnp.int32)]
    out_specs = [hbm, pl.BlockSpec(memory_space=pltpu.SMEM)]
    aliases = {out_place: 0}
    if shape.writes:
        outputs.append(jax.ShapeDtypeStruct(pages.shape, pages.dtype))
        out_specs.append(hbm)
        aliases[pages_place] = 2

    def kernel(*refs: Any) -> None:
        first_query = pages_place - len(queries)
        query_refs, pages_ref = refs[first_query:pages_place], refs[pages_place]
        out_ref, num_fetched_ref, *written = refs[num_inputs:]
        # Pages that are written are read where they are written.
        pages_ref = written[0] if shape.writes else pages_ref
        run_kernel(
            shape,
            only_short,
            Refs._make([*refs[:first_query], query_refs, pages_ref, out_ref, num_fetched_ref]),
        )

    out, num_fetched_1, *written = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(prefetched),
            grid=(1,),
            in_specs=[hbm] * len(inputs),
            out_specs=out_specs,
        ),
        out_shape=outputs,
        input_output_aliases=aliases,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("arbitrary",), vmem_limit_bytes=tpu_tuning.VMEM_BYTES
        ),
        cost_estimate=_cost(shape, queries, out, pages, table.shape[0], pages_per_row),
        interpret=pltpu.InterpretParams() if interpret is True else interpret,
        name="latent_attention",
    )(*prefetched, *inputs)
    return out, written[0] if written else pages, num_fetched_1


def _cost(
    shape: Shape,
    queries: tuple[jax.Array, ...],
    out: jax.ShapeDtypeStruct,
    pages: jax.Array,
    num_slots: int,
    pages_per_row: int,
) -> pl.CostEstimate:
    """Half of what the shapes allow: rows of all lengths up to that of their table."""
    num_pages = min(pages.shape[0], num_slots * pages_per_row)
    page_bytes = math.prod(pages.shape[1:]) * pages.dtype.itemsize
    logits = out.shape[0] * pages_per_row * shape.page_size // 2
    token_bytes = sum(q.size * q.dtype.itemsize for q in queries) + out.size * out.dtype.itemsize
    return pl.CostEstimate(
        flops=2 * logits * (shape.width + shape.value_width),
        transcendentals=logits,
        bytes_accessed=num_pages * page_bytes // 2 + token_bytes,
    )
