"""The Hopper kernel: tiles of rows of one group times strips of its matrix.

Blocks of the grid stay (persistent) and take every n-th unit of work, a visit and a strip of
columns, so that the time is that of the rows present. In a block one warpgroup brings rows and
weights to shared memory by TMA, several steps ahead and across units; the others multiply on WGMMA,
64 rows each. A tile starts at its group's first row, rounded down to where a copy may start, and
only rows of the group are stored.
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
from pallas_kernels.gpu_chips import NUM_SMS
from pallas_kernels.gpu_swizzle import swizzled
from pallas_kernels.grouped_matmul.gpu_tuning import GpuTiles
from pallas_kernels.grouped_matmul.problem import Problem

WARPGROUP_ROWS = 64
"""Rows that one WGMMA computes."""

DEPTH = 64
"""Numbers of a row that a step multiplies: 128 bytes, what a swizzle spans."""

ROW_ALIGN = 8
"""A copy of rows starts at a multiple of the rows of a swizzled tile."""

CHUNK = 64
"""Columns of the result that are on their way to global memory at a time."""

VISIT_BLOCK = 16
"""Visits that pass over all strips together: their rows, and a few strips, stay in the L2 cache."""

FIELDS = ("group", "row", "start", "end")
"""Columns of the array of visits: a tile from ``row`` on, whose rows ``start`` to before ``end``
are stored. Padding has the group that is one too many."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The static shape of a launch."""

    problem: Problem
    tiles: GpuTiles
    stages: int
    interpret: bool

    @property
    def warpgroups(self) -> int:
        """Those that compute."""
        return self.tiles.rows // WARPGROUP_ROWS

    @property
    def num_blocks(self) -> int:
        return 2 if self.interpret else NUM_SMS

    @property
    def stores_whole(self) -> bool:
        """Whether copies to the result can be of swizzled tiles, which divide it."""
        return self.problem.num_rows % ROW_ALIGN == 0

    @property
    def num_strips(self) -> int:
        return self.problem.columns // self.tiles.columns


def plan(problem: Problem, tiles: GpuTiles, *, interpret: bool = False) -> Plan:
    return Plan(problem=problem, tiles=tiles, stages=tiles.stages(problem), interpret=interpret)


def multiply(
    plan: Plan, count_1: jax.Array, visits_V4: jax.Array, x_TD: jax.Array, w_EDF: jax.Array
) -> jax.Array:
    """Runs the visits; each row of the result is written by exactly one of them."""
    problem = plan.problem
    kernel = plgpu.kernel(
        functools.partial(_kernel, plan),
        out_type=jax.ShapeDtypeStruct((problem.num_rows, problem.columns), problem.out_dtype),
        grid=(plan.num_blocks,),
        grid_names=("block",),
        num_threads=plan.warpgroups + 1,
        thread_name="warpgroup",
        interpret=compat.gpu_interpreter() if plan.interpret else None,
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
    )
    return kernel(count_1, visits_V4, x_TD, w_EDF)


@dataclass(frozen=True)
class _Refs:
    """Global memory."""

    count_1: Any
    visits_V4: Any
    x_TD: Any
    w_EDF: Any
    out_TF: Any


@dataclass(frozen=True)
class _Shared:
    """Shared memory, and the barriers that say what is in it (ready) and what is read (free)."""

    x: Any
    w: Any
    whole: Any
    part: Any
    ready: Any
    free: Any


def _kernel(plan: Plan, *refs: Any) -> None:
    gmem = _Refs(*refs)
    rows = (plan.warpgroups, WARPGROUP_ROWS)

    def run(*scratch: Any) -> None:
        shared = _Shared(*scratch)
        warpgroup = jax.lax.axis_index("warpgroup")

        @pl.when(warpgroup < plan.warpgroups)
        def _() -> None:
            if plan.warpgroups > 1:
                plgpu.set_max_registers(232, action="increase")
            _compute(plan, gmem, shared, warpgroup)

        @pl.when(warpgroup == plan.warpgroups)
        def _() -> None:
            if plan.warpgroups > 1:
                plgpu.set_max_registers(40, action="decrease")
            _load(plan, gmem, shared)

    pl.run_scoped(
        run,
        swizzled((plan.stages, *rows, DEPTH), gmem.x_TD.dtype),
        swizzled((plan.stages, DEPTH, plan.tiles.columns), gmem.w_EDF.dtype),
        swizzled((plan.warpgroups, 2, WARPGROUP_ROWS, CHUNK), plan.problem.out_dtype),
        plgpu.SMEM((*rows, CHUNK), plan.problem.out_dtype),
        # One copy of rows for each warpgroup, and one of weights.
        plgpu.Barrier(num_arrivals=plan.warpgroups + 1, num_barriers=plan.stages),
        plgpu.Barrier(num_arrivals=plan.warpgroups, num_barriers=plan.stages),
        collective_axes="warpgroup",
    )


def _for_each_unit(
    plan: Plan,
    gmem: _Refs,
    take: Callable[[dict[str, jax.Array], jax.Array, jax.Array, jax.Array], None],
) -> jax.Array:
    """``take(visit, strip, num_steps, step)`` for all units of this block of the grid.

    ``step`` counts the steps of all units so far. Returns the number of all steps.
    """
    num_visits, num_strips = gmem.count_1[0], jnp.int32(plan.num_strips)
    first = jax.lax.axis_index("block")
    left = jnp.maximum(num_visits * num_strips - first, 0)
    num_units = jax.lax.div(left + (plan.num_blocks - 1), jnp.int32(plan.num_blocks))
    units_of_block = VISIT_BLOCK * num_strips

    def take_unit(nth: jax.Array, step: jax.Array) -> jax.Array:
        unit = first + nth * plan.num_blocks
        first_visit = jax.lax.div(unit, units_of_block) * VISIT_BLOCK
        size = jnp.minimum(num_visits - first_visit, VISIT_BLOCK)
        unit = jax.lax.rem(unit, units_of_block)
        index = first_visit + jax.lax.rem(unit, size)
        visit = {name: gmem.visits_V4[index, field] for field, name in enumerate(FIELDS)}
        # Padding is not multiplied: its sums stay zero.
        is_group = visit["group"] < plan.problem.num_groups
        num_steps = jnp.where(is_group, jnp.int32(plan.problem.depth // DEPTH), 0)
        take(visit, jax.lax.div(unit, size), num_steps, step)
        return step + num_steps

    return jax.lax.fori_loop(0, num_units, take_unit, jnp.int32(0))


def _load(plan: Plan, gmem: _Refs, shared: _Shared) -> None:
    """The warpgroup that copies."""
    columns = plan.tiles.columns

    def load_unit(
        visit: dict[str, jax.Array], strip: jax.Array, num_steps: jax.Array, step: jax.Array
    ) -> None:
        # Written as products: the compiler must see that they are multiples of a tile.
        row = jax.lax.div(visit["row"], jnp.int32(ROW_ALIGN)) * ROW_ALIGN
        w_DF = gmem.w_EDF.at[visit["group"], :, pl.ds(strip * columns, columns)]

        @pl.loop(0, num_steps)
        def _(nth: jax.Array) -> None:
            slot = jax.lax.rem(step + nth, jnp.int32(plan.stages))
            depth = pl.ds(nth * DEPTH, DEPTH)
            ready = shared.ready.at[slot]
            pl.when(step + nth >= plan.stages)(
                functools.partial(plgpu.barrier_wait, shared.free.at[slot])
            )
            plgpu.copy_gmem_to_smem(w_DF.at[depth], shared.w.at[slot], ready)
            for warpgroup in range(plan.warpgroups):
                rows = pl.ds(row + warpgroup * WARPGROUP_ROWS, WARPGROUP_ROWS)
                plgpu.copy_gmem_to_smem(
                    gmem.x_TD.at[rows, depth], shared.x.at[slot, warpgroup], ready
                )

    steps = _for_each_unit(plan, gmem, load_unit)

    @pl.loop(0, jnp.minimum(steps, plan.stages))
    def _(slot: jax.Array) -> None:
        plgpu.barrier_wait(shared.free.at[slot])


def _compute(plan: Plan, gmem: _Refs, shared: _Shared, warpgroup: jax.Array) -> None:
    """A warpgroup that computes ``WARPGROUP_ROWS`` rows of every tile."""
    columns = plan.tiles.columns

    def compute_unit(
        visit: dict[str, jax.Array], strip: jax.Array, num_steps: jax.Array, step: jax.Array
    ) -> None:
        def sum_up(sums: Any) -> jax.Array:
            @pl.loop(0, num_steps)
            def _(nth: jax.Array) -> None:
                slot = jax.lax.rem(step + nth, jnp.int32(plan.stages))
                plgpu.barrier_wait(shared.ready.at[slot])
                plgpu.wgmma(sums, shared.x.at[slot, warpgroup], shared.w.at[slot])
                # One product is under way while the next is issued; the one before is done.
                plgpu.wgmma_wait(1)

                @pl.when(nth > 0)
                def _() -> None:
                    before = jax.lax.rem(step + nth - 1, jnp.int32(plan.stages))
                    plgpu.barrier_arrive(shared.free.at[before])

            return sums[...]

        sums = pl.run_scoped(sum_up, plgpu.ACC((WARPGROUP_ROWS, columns), jnp.float32))

        @pl.when(num_steps > 0)
        def _() -> None:
            last = jax.lax.rem(step + num_steps - 1, jnp.int32(plan.stages))
            plgpu.barrier_arrive(shared.free.at[last])

        first = jax.lax.div(visit["row"], jnp.int32(ROW_ALIGN)) * ROW_ALIGN
        first += warpgroup * WARPGROUP_ROWS
        start = jnp.clip(visit["start"] - first, 0, WARPGROUP_ROWS)
        end = jnp.clip(visit["end"] - first, 0, WARPGROUP_ROWS)
        is_whole = end - start == WARPGROUP_ROWS
        for chunk in range(columns // CHUNK):
            sums_of_chunk = sums[:, chunk * CHUNK : (chunk + 1) * CHUNK]
            new = sums_of_chunk.astype(plan.problem.out_dtype)
            place = pl.ds(strip * columns + chunk * CHUNK, CHUNK)
            whole, part = shared.whole.at[warpgroup, chunk % 2], shared.part.at[warpgroup]
            store_part = functools.partial(
                _store_part, plan, gmem, part, new, first, start, end - start, place
            )
            if not plan.stores_whole:
                store_part()
                continue
            # Where chunks are odd in number, a unit begins with the buffer that the last one ended
            # with.
            under_way = 0 if chunk == 0 and columns // CHUNK % 2 else 1
            pl.when(is_whole)(
                functools.partial(_store_whole, gmem, whole, new, first, place, under_way)
            )
            pl.when(jnp.logical_not(is_whole))(store_part)

    _for_each_unit(plan, gmem, compute_unit)
    plgpu.wait_smem_to_gmem(0)


def _store_whole(
    gmem: _Refs, buffer: Any, new: jax.Array, first: jax.Array, place: Any, under_way: int
) -> None:
    """Sends all rows from one of two buffers, which the copies but the last ``under_way`` have
    left."""
    plgpu.wait_smem_to_gmem(under_way, wait_read_only=True)
    buffer[...] = new
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(buffer, gmem.out_TF.at[pl.ds(first, WARPGROUP_ROWS), place])


def _store_part(
    plan: Plan,
    gmem: _Refs,
    buffer: Any,
    new: jax.Array,
    first: jax.Array,
    start: jax.Array,
    size: jax.Array,
    place: Any,
) -> None:
    """Sends ``size`` rows from ``start`` on: a copy has a fixed size, so one for each bit."""
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    buffer[...] = new
    plgpu.commit_smem()
    rows = WARPGROUP_ROWS // 2 if plan.stores_whole else WARPGROUP_ROWS
    while rows:

        @pl.when((size & rows) != 0)
        def _(rows: int = rows, start: jax.Array = start) -> None:
            plgpu.copy_smem_to_gmem(
                buffer.at[pl.ds(start, rows)], gmem.out_TF.at[pl.ds(first + start, rows), place]
            )

        start += size & rows
        rows //= 2
