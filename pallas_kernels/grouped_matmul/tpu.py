"""Grouped matmul as a Pallas kernel for TPU.

The grid is strips of columns x visits x parts of the depth, and the visits are as many as there
are: a group that is empty has none. Rows are cut into tiles at multiples of the tile; one that
holds a border between groups is visited once for each of its groups, one after the other, and each
visit puts its own rows into the result, which stays in VMEM meanwhile. The pipeline brings the next
tile of rows and of weights while the present ones are multiplied, and brings nothing anew that is
there: tiles of one group, one after the other, share its weights.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.grouped_matmul.problem import Problem
from pallas_kernels.grouped_matmul.tpu_tuning import VMEM_LIMIT, TpuTiles, tpu_tiles_for
from pallas_kernels.grouped_matmul.visits import group_ends, list_visits


def grouped_matmul(
    problem: Problem,
    x_TD: jax.Array,
    w_EDF: jax.Array,
    group_sizes_E: jax.Array,
    w_scale_EF: jax.Array | None,
    *,
    interpret: bool | pltpu.InterpretParams = False,
) -> jax.Array:
    tiles = tpu_tiles_for(problem)
    visits = list_visits(
        group_sizes_E, problem.num_rows, tiles.rows, align=tiles.rows, has_padding=True
    )
    # A visit of padding names what was fetched last: nothing is fetched for it.
    end_E = group_ends(group_sizes_E, problem.num_rows)
    has_rows_E = end_E > jnp.concatenate([jnp.zeros(1, jnp.int32), end_E[:-1]])
    group_E = jnp.arange(problem.num_groups, dtype=jnp.int32)
    last_group = jnp.where(has_rows_E, group_E, 0).max()
    last_tile = jax.lax.div(jnp.maximum(end_E[-1] - 1, 0), jnp.int32(tiles.rows))
    tile_V = jax.lax.div(visits.row_V, jnp.int32(tiles.rows))
    prefetched = (
        visits.group_V,
        jnp.minimum(visits.group_V, last_group),
        jnp.minimum(tile_V, last_tile),
        tile_V,
        visits.start_V,
        visits.end_V,
    )
    scales = () if w_scale_EF is None else (w_scale_EF[:, None, :],)
    return _call(problem, tiles, interpret, visits.count_1[0], *prefetched, x_TD, w_EDF, *scales)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _call(
    problem: Problem,
    tiles: TpuTiles,
    interpret: bool | pltpu.InterpretParams,
    num_visits: jax.Array,
    *arrays: jax.Array,
) -> jax.Array:
    """The kernel itself; compiled for itself, so that it is traced once for all layers."""
    rows, depth, columns = tiles.rows, tiles.depth, tiles.columns
    num_strips, num_parts = problem.columns // columns, problem.depth // depth

    def part_of(visit: jax.Array, part: jax.Array, groups: Any) -> jax.Array:
        if num_parts == 1:
            return part
        return jnp.where(groups[visit] < problem.num_groups, part, num_parts - 1)

    def x_index(strip, visit, part, groups, _, x_tiles, *rest):
        return x_tiles[visit], part_of(visit, part, groups)

    def w_index(strip, visit, part, groups, w_groups, *rest):
        return w_groups[visit], part_of(visit, part, groups), strip

    def scale_index(strip, visit, part, groups, w_groups, *rest):
        return w_groups[visit], 0, strip

    def out_index(strip, visit, part, groups, w_groups, x_tiles, out_tiles, *rest):
        return out_tiles[visit], strip

    in_specs = [pl.BlockSpec((rows, depth), x_index), pl.BlockSpec((None, depth, columns), w_index)]
    if problem.is_scaled:
        in_specs.append(pl.BlockSpec((None, 1, columns), scale_index))
    return pl.pallas_call(
        functools.partial(_kernel, problem, tiles),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=6,
            grid=(num_strips, num_visits, num_parts),
            in_specs=in_specs,
            out_specs=pl.BlockSpec((rows, columns), out_index),
            scratch_shapes=[pltpu.VMEM((rows, columns), jnp.float32)] if num_parts > 1 else [],
        ),
        out_shape=jax.ShapeDtypeStruct((problem.num_rows, problem.columns), problem.out_dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=VMEM_LIMIT,
        ),
        cost_estimate=pl.CostEstimate(
            flops=problem.flops, transcendentals=0, bytes_accessed=tiles.traffic(problem)
        ),
        interpret=pltpu.InterpretParams() if interpret is True else interpret,
        name="grouped_matmul",
    )(*arrays)


def _kernel(
    problem: Problem,
    tiles: TpuTiles,
    groups: Any,
    _w_groups: Any,
    _x_tiles: Any,
    out_tiles: Any,
    starts: Any,
    ends: Any,
    x_td: Any,
    w_df: Any,
    *refs: Any,
) -> None:
    scale_1f = refs[0] if problem.is_scaled else None
    out_tf, *sums = refs[1:] if problem.is_scaled else refs
    visit, part = pl.program_id(1), pl.program_id(2)
    last_part = problem.depth // tiles.depth - 1
    is_padding = groups[visit] == problem.num_groups

    def store(new_tf: jax.Array) -> None:
        if scale_1f is not None:
            new_tf *= scale_1f[...]
        row = out_tiles[visit] * tiles.rows
        start, end = starts[visit] - row, ends[visit] - row
        is_whole = (start <= 0) & (end >= tiles.rows)

        @pl.when(is_whole)
        def _() -> None:
            out_tf[...] = new_tf.astype(out_tf.dtype)

        @pl.when(jnp.logical_not(is_whole))
        def _() -> None:
            # The group that has the first row comes first, and clears the tile for the others.
            nth = jax.lax.broadcasted_iota(jnp.int32, new_tf.shape, 0)
            first = jnp.where(start <= 0, jnp.int32(tiles.rows), 0)
            old_tf = jnp.where(nth < first, 0.0, out_tf[...].astype(jnp.float32))
            is_own = (nth >= start) & (nth < end)
            out_tf[...] = jnp.where(is_own, new_tf, old_tf).astype(out_tf.dtype)

    @pl.when(is_padding)
    def _() -> None:
        out_tf[...] = jnp.zeros_like(out_tf)

    @pl.when(jnp.logical_not(is_padding))
    def _() -> None:
        new_tf = _multiply(x_td[...], w_df[...])
        if not sums:
            store(new_tf)
            return
        (sums_tf,) = sums

        @pl.when(part == 0)
        def _() -> None:
            sums_tf[...] = new_tf

        @pl.when(part > 0)
        def _() -> None:
            sums_tf[...] += new_tf

        @pl.when(part == last_part)
        def _() -> None:
            store(sums_tf[...])


def _multiply(x_td: jax.Array, w_df: jax.Array) -> jax.Array:
    """Summed in float32."""
    return jax.lax.dot_general(
        x_td,
        w_df.astype(x_td.dtype),
        (((1,), (0,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if x_td.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
