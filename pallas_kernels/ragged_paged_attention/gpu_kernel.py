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
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels import compat
from pallas_kernels.ragged_paged_attention.options import Options
from pallas_kernels.ragged_paged_attention.softmax import LOG2_E, NO_TOP

BLOCK = 64
"""Positions that a step takes: one TMA copy of keys, one of values. A page holds one or more."""

WARPGROUP_ROWS = 64
"""Rows of a tile that a warpgroup computes: the least that WGMMA takes."""

ACCUMULATOR_COLUMNS = {64: 64, 128: 128, 256: 64}
"""Columns of one accumulator of weighted values, by head dim; a wide head has several."""

NUM_SMS = 132
"""Multiprocessors of an H100 or H200 (SXM)."""

SHARED_BYTES = 227 * 1024
"""Shared memory that one block may have, and nearly all that a multiprocessor has."""

OTHER_BYTES = 3 * 1024
"""Shared memory for barriers and for sums over warps."""

MAX_STAGES = 6
"""Blocks in flight: enough to hide the latency of memory."""

FIELDS = ("out", "query", "row", "first_block", "num_blocks", "position", "kv_len", "is_whole")
"""Columns of the array of items; ``position`` is that of the first query."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The static shape of a launch.

    ``tile_queries`` (a power of two) query tokens times G heads are the rows of a tile, head by
    head; ``tile_rows`` is their number, rounded up to what a copy takes.
    """

    tile_queries: int
    tile_rows: int
    head_dim: int
    warpgroups: int
    stages: int
    out_dtype: Any
    interpret: bool

    @property
    def num_blocks(self) -> int:
        return 2 if self.interpret else NUM_SMS

    @property
    def columns(self) -> int:
        """Columns of one accumulator."""
        return ACCUMULATOR_COLUMNS[self.head_dim]

    def in_tile_layout(self, x: jax.Array) -> jax.Array:
        """``x [rows, columns]``, or one number a row, spread over threads as WGMMA does it.

        The inference of layouts needs these hints; the interpreter does not know them.
        """
        if self.interpret:
            return x
        layout = plgpu.Layout.WGMMA
        return plgpu.layout_cast(x, layout if x.ndim == 2 else layout.reduce(1))


def plan(
    group_size: int,
    head_dim: int,
    *,
    max_queries: int,
    warpgroups: int,
    out_dtype: Any,
    interpret: bool = False,
) -> Plan:
    """The launch for tiles of at most ``max_queries`` tokens (1: decode) of G heads.

    It has ``warpgroups`` that compute, or one where that is enough.
    """
    if _power_of_two_up_to(max_queries) * group_size <= WARPGROUP_ROWS:
        warpgroups = 1
    rows = warpgroups * WARPGROUP_ROWS
    tile_queries = _power_of_two_up_to(max(min(rows // group_size, max_queries), 1))
    tile_rows = min(-(-tile_queries * group_size // 8) * 8, rows)
    columns = ACCUMULATOR_COLUMNS[head_dim]
    per_tile = rows * (head_dim * 2 + columns * jnp.dtype(out_dtype).itemsize + 4)
    per_stage = 2 * BLOCK * head_dim * 2
    free = SHARED_BYTES - per_tile - OTHER_BYTES
    return Plan(
        tile_queries=tile_queries,
        tile_rows=tile_rows,
        head_dim=head_dim,
        warpgroups=warpgroups,
        stages=max(min(free // per_stage, MAX_STAGES), 2),
        out_dtype=out_dtype,
        interpret=interpret,
    )


def _power_of_two_up_to(number: int) -> int:
    return 1 << (number.bit_length() - 1)


def attend(
    plan: Plan,
    options: Options,
    num_items_1: jax.Array,
    items_I8: jax.Array,
    page_table_SM: jax.Array,
    q_XKQH: jax.Array,
    keys_PKpH: jax.Array,
    values_PKpH: jax.Array,
    *,
    num_outs: int,
) -> tuple[jax.Array, jax.Array]:
    """Runs the items; returns ``(out [Y, K, Q, H], lse [Y, K, Q])`` of Y = ``num_outs`` outs.

    ``q_XKQH`` has the dtype of the pages, Q = ``plan.tile_rows``. ``out`` is the average over the
    positions that an item sees, ``lse`` the binary logarithm of the sum of their weights (very
    negative where it saw nothing). Outs that no item names are not written.
    """
    num_kv_heads = keys_PKpH.shape[1]
    tile, columns = (num_outs, num_kv_heads, plan.tile_rows), plan.head_dim
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
    return kernel(num_items_1, items_I8, page_table_SM, q_XKQH, keys_PKpH, values_PKpH)


@dataclass(frozen=True)
class _Refs:
    """Global memory."""

    num_items_1: Any
    items_I8: Any
    page_table_SM: Any
    q_XKQH: Any
    keys_PKpH: Any
    values_PKpH: Any
    out_YKQH: Any
    lse_YKQ: Any


@dataclass(frozen=True)
class _Shared:
    """Shared memory, and the barriers that say what is in it (ready) and what is read (free)."""

    q: Any
    keys: Any
    values: Any
    out: Any
    lse: Any
    q_ready: Any
    keys_ready: Any
    values_ready: Any
    q_free: Any
    keys_free: Any
    values_free: Any


def _kernel(plan: Plan, options: Options, *refs: Any) -> None:
    gmem = _Refs(*refs)
    dtype = gmem.keys_PKpH.dtype
    tile = (plan.warpgroups, WARPGROUP_ROWS)
    stage = (plan.stages, BLOCK, plan.head_dim)

    def run(*scratch: Any) -> None:
        shared = _Shared(*scratch)
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

    pl.run_scoped(
        run,
        _swizzled((*tile, plan.head_dim), dtype),
        _swizzled(stage, dtype),
        _swizzled(stage, dtype),
        _swizzled((*tile, plan.columns), plan.out_dtype),
        plgpu.SMEM(tile, jnp.float32),
        plgpu.Barrier(num_arrivals=plan.warpgroups),  # One copy of queries for each.
        plgpu.Barrier(num_barriers=plan.stages),
        plgpu.Barrier(num_barriers=plan.stages),
        plgpu.Barrier(num_arrivals=plan.warpgroups),
        plgpu.Barrier(num_arrivals=plan.warpgroups, num_barriers=plan.stages),
        plgpu.Barrier(num_arrivals=plan.warpgroups, num_barriers=plan.stages),
        collective_axes="warpgroup",
    )


def _swizzled(shape: tuple[int, ...], dtype: Any) -> Any:
    """Shared memory in the order that WGMMA reads, spread over all banks."""
    columns = 128 // jnp.dtype(dtype).itemsize
    transforms = (plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM(shape, dtype, transforms=transforms)


def _for_each_unit(
    gmem: _Refs,
    num_blocks: int,
    take: Callable[[jax.Array, dict[str, jax.Array], jax.Array, jax.Array], jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """``step = take(count, item, head, step)`` for all units of this block of the grid.

    ``count`` counts the units, ``step`` the blocks of positions of all units so far. Returns both.
    """
    num_kv_heads = gmem.keys_PKpH.shape[1]
    first = jax.lax.axis_index("block")
    left = gmem.num_items_1[0] * num_kv_heads - first
    num_units = jax.lax.div(jnp.maximum(left, 0) + (num_blocks - 1), jnp.int32(num_blocks))

    def take_unit(count: jax.Array, step: jax.Array) -> jax.Array:
        unit = first + count * num_blocks
        index = jax.lax.div(unit, jnp.int32(num_kv_heads))
        item = {name: gmem.items_I8[index, field] for field, name in enumerate(FIELDS)}
        return take(count, item, jax.lax.rem(unit, jnp.int32(num_kv_heads)), step)

    return num_units, jax.lax.fori_loop(0, num_units, take_unit, jnp.int32(0))


def _load(plan: Plan, gmem: _Refs, shared: _Shared) -> None:
    """The warpgroup that copies."""
    blocks_per_page = jnp.int32(gmem.keys_PKpH.shape[2] // BLOCK)

    def load_unit(count, item, head, step):
        pl.when(count > 0)(lambda: plgpu.barrier_wait(shared.q_free))
        for warpgroup in range(plan.warpgroups):
            start = warpgroup * WARPGROUP_ROWS
            rows = min(WARPGROUP_ROWS, plan.tile_rows - start)
            plgpu.copy_gmem_to_smem(
                gmem.q_XKQH.at[item["query"], head, pl.ds(start, rows)],
                _top(shared.q.at[warpgroup], rows),
                shared.q_ready,
            )

        def load_block(index: jax.Array, step: jax.Array) -> jax.Array:
            slot = jax.lax.rem(step, jnp.int32(plan.stages))
            block = item["first_block"] + index
            page = gmem.page_table_SM[item["row"], jax.lax.div(block, blocks_per_page)]
            # Written as a product: the compiler must see that it is a multiple of a tile.
            offset = jax.lax.rem(block, blocks_per_page) * BLOCK
            for pool, buffer, ready, free in (
                (gmem.keys_PKpH, shared.keys, shared.keys_ready, shared.keys_free),
                (gmem.values_PKpH, shared.values, shared.values_ready, shared.values_free),
            ):
                pl.when(step >= plan.stages)(functools.partial(plgpu.barrier_wait, free.at[slot]))
                plgpu.copy_gmem_to_smem(
                    pool.at[page, head, pl.ds(offset, BLOCK)], buffer.at[slot], ready.at[slot]
                )
            return step + 1

        return jax.lax.fori_loop(0, item["num_blocks"], load_block, step)

    num_units, steps = _for_each_unit(gmem, plan.num_blocks, load_unit)
    pl.when(num_units > 0)(lambda: plgpu.barrier_wait(shared.q_free))

    @pl.loop(0, jnp.minimum(steps, plan.stages))
    def _(slot: jax.Array) -> None:
        plgpu.barrier_wait(shared.keys_free.at[slot])
        plgpu.barrier_wait(shared.values_free.at[slot])


def _compute(
    plan: Plan,
    options: Options,
    gmem: _Refs,
    shared: _Shared,
    warpgroup: jax.Array,
) -> None:
    """A warpgroup that computes ``WARPGROUP_ROWS`` rows of every tile."""
    columns, chunks = plan.columns, plan.head_dim // plan.columns
    q, out, lse = (x.at[warpgroup] for x in (shared.q, shared.out, shared.lse))

    def attend_unit(count, item, head, step):
        del count
        plgpu.barrier_wait(shared.q_ready)

        def attend_block(index: jax.Array, carry: Any) -> Any:
            sums, top, total = carry
            slot = jax.lax.rem(step + index, jnp.int32(plan.stages))
            keys, values = shared.keys.at[slot], shared.values.at[slot]
            place = (item["first_block"] + index) * BLOCK
            first, last = _held(options, gmem, item, place)

            plgpu.barrier_wait(shared.keys_ready.at[slot])
            logits = _logits(plan, q, keys)
            plgpu.barrier_arrive(shared.keys_free.at[slot])
            logits = _scaled(options, logits)
            sees = _sees(plan, options, item["position"], place, first, last, warpgroup)
            logits = jnp.where(sees, logits, -jnp.inf)

            new_top = jnp.maximum(top, logits.max(axis=1))
            weights = jnp.exp2(logits - _along_rows(new_top, logits.shape))
            decay = jnp.exp2(top - new_top)
            total = total * decay + weights.sum(axis=1)
            weights = weights.astype(values.dtype)

            plgpu.barrier_wait(shared.values_ready.at[slot])
            is_edge = (place < first) | (place + BLOCK > last)
            new_sums = []
            for chunk in range(chunks):
                part = values.at[:, pl.ds(chunk * columns, columns)] if chunks > 1 else values
                pl.when(is_edge)(functools.partial(_clean, plan, part, place, first, last))
                decayed = sums[chunk] * _along_rows(decay, sums[chunk].shape)
                new_sums.append(_add_product(plan, decayed, weights, part))
            plgpu.barrier_arrive(shared.values_free.at[slot])
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
        place = (item["out"], head)
        for chunk, part in enumerate(sums):
            average = part / _along_rows(total, part.shape)
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            out[...] = average.astype(plan.out_dtype)
            if chunk == 0:
                lse[...] = top + jnp.log(total) * LOG2_E
            plgpu.commit_smem()
            columns_of_chunk = (pl.ds(chunk * columns, columns),) if chunks > 1 else ()
            _store(plan, out, gmem.out_YKQH, place, warpgroup, columns_of_chunk)
            if chunk == 0:
                _store(plan, lse, gmem.lse_YKQ, place, warpgroup)
        return step + item["num_blocks"]

    _for_each_unit(gmem, plan.num_blocks, attend_unit)
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
    options: Options, gmem: _Refs, item: dict[str, jax.Array], place: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The positions ``first <= position < last`` that may be seen of the block at ``place``.

    All others may hold NaN. A row with holes looks up whether somebody owns the page.
    """
    page_size = gmem.keys_PKpH.shape[2]

    def owned_len() -> jax.Array:
        page = gmem.page_table_SM[item["row"], jax.lax.div(place, jnp.int32(page_size))]
        return jnp.where(page > 0, item["kv_len"], 0)

    last = jax.lax.cond(item["is_whole"] > 0, lambda: item["kv_len"], owned_len)
    if options.sliding_window is None:
        return jnp.int32(0), last
    return item["position"] - (options.sliding_window - 1), last


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
    shape = (WARPGROUP_ROWS, BLOCK)
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
    query = _along_rows(query + (position - place), shape)
    if options.causal:
        sees &= column <= query
    if options.sliding_window is not None:
        sees &= column > query - options.sliding_window
    return sees


def _scaled(options: Options, products: jax.Array) -> jax.Array:
    """Logits in powers of two."""
    if options.logit_softcap is None:
        return products * (options.scale * LOG2_E)
    cap = options.logit_softcap
    return jnp.tanh(products * (options.scale / cap)) * (cap * LOG2_E)


def _clean(plan: Plan, values: Any, place: jax.Array, first: jax.Array, last: jax.Array) -> None:
    """Makes values that nobody may see zero: a weight of zero times NaN would be NaN."""
    held = plan.in_tile_layout(values[...])
    position = place + plan.in_tile_layout(jax.lax.broadcasted_iota(jnp.int32, held.shape, 0))
    is_held = (position >= first) & (position < last)
    values[...] = jnp.where(is_held, held, jnp.zeros_like(held))
    plgpu.commit_smem()


def _logits(plan: Plan, q: Any, keys: Any) -> jax.Array:
    """``q @ keys.T`` in float32 by WGMMA, both from shared memory.

    The interpreter's WGMMA takes no transposed operand: there it is a plain product.
    """
    if plan.interpret:
        dimensions = (((1,), (1,)), ((), ()))
        return jax.lax.dot_general(
            q[...], keys[...], dimensions, preferred_element_type=jnp.float32
        )

    def multiply(accumulator: Any) -> jax.Array:
        plgpu.wgmma(accumulator, q, plgpu.transpose_ref(keys, (1, 0)))
        return accumulator[...]

    return pl.run_scoped(multiply, plgpu.ACC((WARPGROUP_ROWS, BLOCK), jnp.float32))


def _add_product(plan: Plan, sums: jax.Array, weights: jax.Array, values: Any) -> jax.Array:
    """``sums + weights @ values`` in float32 by WGMMA, in the registers that hold ``sums``.

    The interpreter's WGMMA takes nothing from registers: there it is a plain product.
    """
    if plan.interpret:
        return sums + jnp.dot(weights, values[...], preferred_element_type=jnp.float32)

    def multiply(accumulator: Any) -> None:
        plgpu.wgmma(accumulator, weights, values)

    return pl.run_state(multiply)(plgpu.ACC.init(sums))


def _along_rows(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return jax.lax.broadcast_in_dim(x, shape, [0])
