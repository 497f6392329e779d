"""The Hopper kernel: tiles of queries walk over the pages that they see.

One kernel serves decode and prefill. A unit of work is an item (a tile of queries and a run of
blocks of one row) for one kv head; the G query heads that share it are packed into the rows of the
tile, so that one WGMMA serves them all. Blocks of the grid stay (persistent) and take every n-th
unit, so that the time is that of the work present, not of the padded shapes. In a block, one
warpgroup brings keys and values to shared memory by TMA, several blocks ahead and across units; the
others compute, as in FlashAttention-3 (arXiv 2407.08608). A decode row is cut into several items
(split-KV, FlashDecoding); what they return is joined outside.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels import compat
from pallas_kernels.gpu_swizzle import swizzled
from pallas_kernels.paging.gpu_units import Item, along_rows, for_each_unit, owned_end
from pallas_kernels.paging.options import Options
from pallas_kernels.paging.softmax import LOG2_E, NO_TOP
from pallas_kernels.ragged_paged_attention.gpu_pages import GpuKVPages
from pallas_kernels.ragged_paged_attention.gpu_plan import WARPGROUP_ROWS, Plan
from pallas_kernels.ragged_paged_attention.gpu_products import (
    CONVERTED_COLUMNS,
    add_product,
    clean,
    convert,
    logits_of,
    split,
)


def attend(
    plan: Plan,
    options: Options,
    num_items_1: jax.Array,
    items_I8: jax.Array,
    page_table_SM: jax.Array,
    q_XRcQH: jax.Array,
    pools: Sequence[GpuKVPages],
    *,
    num_outs: int,
) -> tuple[jax.Array, jax.Array]:
    """Runs the items; returns ``(out [Y, R, Q, H], lse [Y, R, Q])`` of Y = ``num_outs`` outs.

    ``q_XRcQH`` holds R groups of query heads, those of a kv head side by side, in the c parts of
    ``plan.operands``; Q = ``plan.tile_rows``. ``pools`` are one or two, whose pages are numbered
    through. ``out`` is the average over the positions that an item sees, ``lse`` the binary
    logarithm of the sum of their weights (very negative where it saw nothing). Outs that no item
    names are not written.
    """
    tile, columns = (num_outs, q_XRcQH.shape[1], plan.tile_rows), plan.head_dim
    kernel = plgpu.kernel(
        functools.partial(_kernel, plan, options),
        out_type=(
            jax.ShapeDtypeStruct((*tile, columns), plan.out_dtype),
            jax.ShapeDtypeStruct(tile, jnp.float32),
        ),
        grid=(plan.num_blocks,),
        grid_names=("block",),
        num_threads=plan.warpgroups + 1,
        thread_name="warpgroup",
        interpret=compat.gpu_interpreter() if plan.interpret else None,
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Warpgroup, approx_math=True
        ),
    )
    heads = (pool.heads_PXpH for pool in pools)
    return kernel(num_items_1, items_I8, page_table_SM, q_XRcQH, *heads)


class _Refs:
    """Global memory."""

    def __init__(self, *refs: Any) -> None:
        self.num_items_1, self.items_I8, self.page_table_SM, self.q_XRcQH, *self.pools = refs[:-2]
        self.out_YRQH, self.lse_YRQ = refs[-2:]

    @property
    def num_groups(self) -> int:
        return self.q_XRcQH.shape[1]

    @property
    def groups_per_head(self) -> int:
        return 2 * self.num_groups // self.pools[0].shape[1]

    @property
    def page_size(self) -> int:
        return self.pools[0].shape[2]

    def for_each_unit(self, num_blocks: int, take: Any) -> tuple[jax.Array, jax.Array]:
        items = (self.num_items_1, self.items_I8)
        return for_each_unit(*items, self.num_groups, num_blocks, take)


@dataclass(frozen=True, kw_only=True)
class _Shared:
    """Shared memory, and the barriers that say what is in it (ready) and what is read (free).

    The stages take keys and values in turn. ``matrix`` is a block of keys or values for each
    warpgroup, where pages do not hold operands.
    """

    q: Any
    stage: Any
    out: Any
    lse: Any
    q_ready: Any
    q_free: Any
    stage_ready: Any
    stage_free: Any
    matrix: Any = None


def _kernel(plan: Plan, options: Options, *refs: Any) -> None:
    gmem = _Refs(*refs)

    def run(**scratch: Any) -> None:
        shared = _Shared(**scratch)
        warpgroup = jax.lax.axis_index("warpgroup")

        @pl.when(warpgroup < plan.warpgroups)
        def _() -> None:
            if plan.warpgroups > 1:
                plgpu.set_max_registers(232, action="increase")
            _compute(plan, options, gmem, shared, warpgroup)

        @pl.when(warpgroup == plan.warpgroups)
        def _() -> None:
            if plan.warpgroups > 1:
                plgpu.set_max_registers(40, action="decrease")
            _load(plan, gmem, shared)

    operands, stages = plan.operands, plan.stages
    tile, block = (plan.warpgroups, WARPGROUP_ROWS), (plan.tiles.block, plan.head_dim)
    num_tiles = plan.warpgroups * operands.parts
    stage_columns = CONVERTED_COLUMNS if operands.is_converted else None
    scratch = {
        "q": swizzled((num_tiles, WARPGROUP_ROWS, plan.head_dim), operands.dtype, stage_columns),
        "stage": swizzled((stages, *block), plan.pages_dtype, stage_columns),
        "out": swizzled((*tile, plan.tiles.columns), plan.out_dtype),
        "lse": plgpu.SMEM(tile, jnp.float32),
        "q_ready": plgpu.Barrier(num_arrivals=num_tiles),
        "q_free": plgpu.Barrier(num_arrivals=plan.warpgroups),
        "stage_ready": plgpu.Barrier(num_barriers=stages),
        "stage_free": plgpu.Barrier(num_arrivals=plan.warpgroups, num_barriers=stages),
    }
    if operands.is_converted:
        scratch["matrix"] = swizzled((num_tiles, *block), operands.dtype, stage_columns)
    pl.run_scoped(run, collective_axes="warpgroup", **scratch)


def _load(plan: Plan, gmem: _Refs, shared: _Shared) -> None:
    """The warpgroup that copies."""
    block_len = plan.tiles.block
    blocks_per_page = jnp.int32(gmem.page_size // block_len)

    def load_unit(count: jax.Array, item: Item, group: jax.Array, step: jax.Array) -> jax.Array:
        head = jax.lax.div(group, jnp.int32(gmem.groups_per_head))
        pl.when(count > 0)(lambda: plgpu.barrier_wait(shared.q_free))
        for warpgroup in range(plan.warpgroups):
            start = warpgroup * WARPGROUP_ROWS
            rows = min(WARPGROUP_ROWS, plan.tile_rows - start)
            for part in range(plan.operands.parts):
                plgpu.copy_gmem_to_smem(
                    gmem.q_XRcQH.at[item["query"], group, part, pl.ds(start, rows)],
                    _top(shared.q.at[warpgroup * plan.operands.parts + part], rows),
                    shared.q_ready,
                )

        def bring(turn: int, page: jax.Array, offset: jax.Array, target: Any, ready: Any) -> None:
            def copy(pool: Any, page: jax.Array) -> None:
                source = pool.at[page, 2 * head + turn, pl.ds(offset, block_len)]
                plgpu.copy_gmem_to_smem(source, target, ready)

            pools = gmem.pools
            if len(pools) == 1:
                copy(pools[0], page)
                return
            num_pages = pools[0].shape[0]
            pl.when(page < num_pages)(functools.partial(copy, pools[0], page))
            pl.when(page >= num_pages)(functools.partial(copy, pools[1], page - num_pages))

        def load_block(index: jax.Array, step: jax.Array) -> jax.Array:
            block = item["first_block"] + index
            page = gmem.page_table_SM[item["row"], jax.lax.div(block, blocks_per_page)]
            # Written as a product: the compiler must see that it is a multiple of a tile.
            offset = jax.lax.rem(block, blocks_per_page) * block_len
            for turn in range(2):  # keys, then values
                slot = jax.lax.rem(2 * step + turn, jnp.int32(plan.stages))

                is_taken = 2 * step + turn >= plan.stages
                pl.when(is_taken)(functools.partial(plgpu.barrier_wait, shared.stage_free.at[slot]))
                target, ready = shared.stage.at[slot], shared.stage_ready.at[slot]
                pl.when(page > 0)(functools.partial(bring, turn, page, offset, target, ready))
                # What the memory held before stays, and is not seen.
                pl.when(page <= 0)(functools.partial(plgpu.barrier_arrive, ready))
            return step + 1

        return jax.lax.fori_loop(0, item["num_blocks"], load_block, step)

    num_units, steps = gmem.for_each_unit(plan.num_blocks, load_unit)
    pl.when(num_units > 0)(lambda: plgpu.barrier_wait(shared.q_free))

    @pl.loop(0, jnp.minimum(2 * steps, plan.stages))
    def _(slot: jax.Array) -> None:
        plgpu.barrier_wait(shared.stage_free.at[slot])


def _compute(
    plan: Plan,
    options: Options,
    gmem: _Refs,
    shared: _Shared,
    warpgroup: jax.Array,
) -> None:
    """A warpgroup that computes ``WARPGROUP_ROWS`` rows of every tile."""
    columns = plan.tiles.columns
    chunks, parts = plan.head_dim // columns, plan.operands.parts

    def parts_of(buffer: Any, place: jax.Array) -> list[Any]:
        first = warpgroup * parts + _unseen_zero(place)
        return [buffer.at[first + part] for part in range(parts)]

    def attend_unit(count: jax.Array, item: Item, group: jax.Array, step: jax.Array) -> jax.Array:
        del count
        plgpu.barrier_wait(shared.q_ready)

        def attend_block(index: jax.Array, carry: Any) -> Any:
            sums, top, total = carry
            key_slot, value_slot = (
                jax.lax.rem(2 * (step + index) + turn, jnp.int32(plan.stages)) for turn in (0, 1)
            )
            place = (item["first_block"] + index) * plan.tiles.block
            first, last = _held(options, gmem, item, place)

            plgpu.barrier_wait(shared.stage_ready.at[key_slot])
            keys = [shared.stage.at[key_slot]]
            if plan.operands.is_converted:
                stored, keys = keys[0], parts_of(shared.matrix, place)
                convert(plan, stored, keys)
            logits = logits_of(plan, parts_of(shared.q, place), keys)
            plgpu.barrier_arrive(shared.stage_free.at[key_slot])
            logits = jax.lax.cond(
                _all_see(plan, options, item["position"], place, first, last),
                lambda logits: logits,
                lambda logits: jnp.where(
                    _sees(plan, options, item["position"], place, first, last, warpgroup),
                    logits,
                    -jnp.inf,
                ),
                _scaled(plan, options, logits),
            )

            new_top = jnp.maximum(top, logits.max(axis=1))
            weights = jnp.exp2(logits - along_rows(new_top, logits.shape))
            decay = jnp.exp2(top - new_top)
            total = total * decay + weights.sum(axis=1)
            weights_of_parts = split(plan.operands, weights)

            plgpu.barrier_wait(shared.stage_ready.at[value_slot])
            values, held = [shared.stage.at[value_slot]], (first - place, last - place)
            if plan.operands.is_converted:
                stored, values = values[0], parts_of(shared.matrix, place)
                convert(plan, stored, values, held)
            is_edge = (place < first) | (place + plan.tiles.block > last)
            new_sums = []
            for chunk in range(chunks):
                of_chunk = (slice(None), pl.ds(chunk * columns, columns))
                part = [x.at[of_chunk] for x in values] if chunks > 1 else values
                if not plan.operands.is_converted:
                    pl.when(is_edge)(functools.partial(clean, plan, part[0], held))
                decayed = sums[chunk] * along_rows(decay, sums[chunk].shape)
                new_sums.append(add_product(plan, decayed, weights_of_parts, part))
            plgpu.barrier_arrive(shared.stage_free.at[value_slot])
            return tuple(new_sums), new_top, total

        tile_of, rows = (WARPGROUP_ROWS, columns), (WARPGROUP_ROWS,)
        zeros = tuple(plan.in_tile_layout(jnp.zeros(tile_of, jnp.float32)) for _ in range(chunks))
        no_top = plan.in_tile_layout(jnp.full(rows, NO_TOP, jnp.float32))
        no_total = plan.in_tile_layout(jnp.zeros(rows, jnp.float32))
        sums, top, total = jax.lax.fori_loop(
            0, item["num_blocks"], attend_block, (zeros, no_top, no_total)
        )
        plgpu.barrier_arrive(shared.q_free)

        has_seen = total > 0
        total = jnp.where(has_seen, total, 1.0)
        place = (item["out"], group)
        zero = _unseen_zero(item["position"])
        out, lse = shared.out.at[warpgroup + zero], shared.lse.at[warpgroup + zero]
        for chunk, part in enumerate(sums):
            average = part / along_rows(total, part.shape)
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            out[...] = average.astype(plan.out_dtype)
            if chunk == 0:
                lse[...] = top + jnp.log(total) * LOG2_E
            plgpu.commit_smem()
            columns_of_chunk = (pl.ds(chunk * columns, columns),) if chunks > 1 else ()
            _store(plan, out, gmem.out_YRQH, place, warpgroup, columns_of_chunk)
            if chunk == 0:
                _store(plan, lse, gmem.lse_YRQ, place, warpgroup)
        return step + item["num_blocks"]

    gmem.for_each_unit(plan.num_blocks, attend_unit)
    plgpu.wait_smem_to_gmem(0)


def _store(
    plan: Plan,
    source: Any,
    target: Any,
    place: tuple[jax.Array, ...],
    warpgroup: jax.Array,
    columns: tuple[Any, ...] = (),
) -> None:
    """Sends the rows of a tile that are in use from shared to global memory."""
    for number in range(plan.warpgroups):
        start = number * WARPGROUP_ROWS
        rows = min(WARPGROUP_ROWS, plan.tile_rows - start)

        @pl.when(warpgroup == number)
        def _(start: int = start, rows: int = rows) -> None:
            plgpu.copy_smem_to_gmem(
                _top(source, rows), target.at[(*place, pl.ds(start, rows), *columns)]
            )


def _top(tile: Any, rows: int) -> Any:
    return tile if rows == WARPGROUP_ROWS else tile.at[pl.ds(0, rows)]


def _held(
    options: Options, gmem: _Refs, item: Item, place: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The positions ``first <= position < last`` that may be seen of the block at ``place``.

    All others may hold NaN.
    """
    last = owned_end(gmem.page_table_SM, gmem.page_size, item, place)
    if options.sliding_window is None:
        return jnp.int32(0), last
    return item["position"] - (options.sliding_window - 1), last


def _all_see(
    plan: Plan,
    options: Options,
    position: jax.Array,
    place: jax.Array,
    first: jax.Array,
    last: jax.Array,
) -> jax.Array:
    """Whether all rows of a tile see all positions of the block at ``place``."""
    end = place + plan.tiles.block
    seen = (place >= first) & (end <= last)
    if options.causal:
        seen &= end <= position + 1
    if options.sliding_window is not None:
        seen &= place > position + (plan.tile_queries - 1 - options.sliding_window)
    return seen


def _sees(
    plan: Plan,
    options: Options,
    position: jax.Array,
    place: jax.Array,
    first: jax.Array,
    last: jax.Array,
    warpgroup: jax.Array,
) -> jax.Array:
    """Which of the positions from ``place`` on the rows of a tile see."""
    shape = (WARPGROUP_ROWS, plan.tiles.block)
    column = plan.in_tile_layout(jax.lax.broadcasted_iota(jnp.int32, shape, 1))
    if plan.tile_queries == 1 and options.causal:
        last = jnp.minimum(last, position + 1)
    sees = column < last - place
    if plan.tile_queries == 1 and options.sliding_window is not None:
        # One comparison: what is before the first is very large without its sign.
        since_first = (column + (place - first)).astype(jnp.uint32)
        return since_first < jnp.maximum(last - first, 0).astype(jnp.uint32)
    if plan.tile_queries == 1:
        return sees
    if not options.causal and options.sliding_window is None:
        return sees
    # One number a row, not one a position: registers are scarce.
    row = plan.in_tile_layout(jax.lax.broadcasted_iota(jnp.int32, shape[:1], 0))
    query = (row + warpgroup * WARPGROUP_ROWS) & (plan.tile_queries - 1)
    query = along_rows(query + (position - place), shape)
    if options.causal:
        sees &= column <= query
    if options.sliding_window is not None:
        sees &= column > query - options.sliding_window
    return sees


def _scaled(plan: Plan, options: Options, products: jax.Array) -> jax.Array:
    """Logits in powers of two."""
    if options.logit_softcap is None:
        return products * (options.scale * LOG2_E)
    cap = options.logit_softcap
    x = products * (options.scale / cap)
    if plan.pages_dtype == jnp.float32:  # The instruction for tanh has 11 bits.
        return (cap * LOG2_E) - (2 * cap * LOG2_E) / (1 + jnp.exp2(x * (2 * LOG2_E)))
    return jnp.tanh(x) * (cap * LOG2_E)


def _unseen_zero(x: jax.Array) -> jax.Array:
    """0 for ``x >= 0``, of which the compiler does not know that. Added to an index that does not
    change in a loop, it keeps addresses from being computed ahead of the loop: they would fill the
    registers meanwhile."""
    return x >> 31
