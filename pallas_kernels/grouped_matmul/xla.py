"""Grouped matmul in plain XLA: a loop over tiles of rows, as many as there are.

On CPU and GPU ``lax.ragged_dot`` multiplies every row by every group's matrix. On TPU, where it is
a kernel of the compiler's own, it is used.
"""

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.grouped_matmul.problem import Problem
from pallas_kernels.grouped_matmul.visits import group_ends, list_visits
from pallas_kernels.grouped_matmul.xla_tuning import xla_tiles_for
from pallas_kernels.nonnegative import divide, divide_up


def grouped_matmul(
    problem: Problem,
    x_TD: jax.Array,
    w_EDF: jax.Array,
    group_sizes_E: jax.Array,
    w_scale_EF: jax.Array | None,
) -> jax.Array:
    platform = dispatch.chip().platform
    if platform == "tpu" and w_scale_EF is None:
        return _ragged_dot(problem, x_TD, w_EDF, group_sizes_E)
    tiles = xla_tiles_for(problem)
    is_cpu = platform == "cpu"
    # A loop that cuts parts of int8 matrices makes XLA:TPU copy all of them to another layout.
    rows, depth = tiles.rows, tiles.depth if is_cpu else problem.depth
    num_parts = problem.depth // depth
    visits = list_visits(group_sizes_E, problem.num_rows, rows, align=1, has_padding=False)
    # A slice is never longer than what it is cut from.
    missing = max(rows - problem.num_rows, 0)
    x_TD = jnp.pad(x_TD, ((0, missing), (0, 0)))
    if is_cpu:
        x_TD = x_TD.astype(jnp.float32)
    last_row = x_TD.shape[0] - rows

    def one_part(nth: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple:
        """A part of a matrix is multiplied by all tiles of its group before the next one is."""
        out_TF, w_dF = carry
        of_group = divide(nth, num_parts)
        group, start = visits.group_V[of_group], visits.start_V[of_group]
        num_tiles = divide_up(visits.end_V[of_group] - start, rows)
        first_visit = of_group - divide(visits.row_V[of_group] - start, rows)
        nth -= first_visit * num_parts
        tile = jax.lax.rem(nth, num_tiles)
        visit, first = first_visit + tile, jax.lax.div(nth, num_tiles) * depth

        def part() -> jax.Array:
            return _part(w_EDF, group, first, depth, is_cpu=is_cpu).astype(x_TD.dtype)

        # Elsewhere a condition waits for the host, and nothing has to be widened.
        w_dF = jax.lax.cond(tile == 0, part, lambda: w_dF) if is_cpu else part()
        row = jnp.minimum(visits.row_V[visit], last_row)
        x_td = jax.lax.dynamic_slice(x_TD, (row, first), (rows, depth))
        new_tF = jnp.dot(x_td, w_dF, precision=_precision(x_td), preferred_element_type=jnp.float32)
        if w_scale_EF is not None:
            new_tF *= jax.lax.dynamic_index_in_dim(w_scale_EF, group)
        nth_row_t = row + jnp.arange(rows, dtype=jnp.int32)
        is_own_t = (nth_row_t >= visits.row_V[visit]) & (nth_row_t < visits.end_V[visit])
        old_tF = jax.lax.dynamic_slice(out_TF, (row, 0), (rows, problem.columns))
        new_tF = old_tF + jnp.where(is_own_t[:, None], new_tF, 0.0)
        return jax.lax.dynamic_update_slice(out_TF, new_tF, (row, 0)), w_dF if is_cpu else no_part

    no_part = jnp.zeros((depth, problem.columns) if is_cpu else (0,), x_TD.dtype)
    out_TF = jnp.zeros((x_TD.shape[0], problem.columns), jnp.float32)
    nothing = (out_TF, no_part)
    out_TF, _ = jax.lax.fori_loop(0, visits.count_1[0] * num_parts, one_part, nothing)
    return out_TF[: problem.num_rows].astype(problem.out_dtype)


def _part(
    w_EDF: jax.Array, group: jax.Array, first: jax.Array, depth: int, *, is_cpu: bool
) -> jax.Array:
    """Some rows of one group's matrix: one run of memory.

    XLA:CPU slices no small floats: it converts what they are cut from, all of it, and does so
    before the loop. So there they are cut as integers, and the barrier makes the array depend on
    the loop, or a copy of all of it as integers would be made before.
    """
    dtype = w_EDF.dtype
    is_small = is_cpu and jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4
    if is_small:
        w_EDF, group = jax.lax.optimization_barrier((w_EDF, group))
        w_EDF = jax.lax.bitcast_convert_type(w_EDF, f"uint{8 * dtype.itemsize}")
    w_dF = jax.lax.dynamic_slice(w_EDF, (group, first, 0), (1, depth, w_EDF.shape[2]))[0]
    return jax.lax.bitcast_convert_type(w_dF, dtype) if is_small else w_dF


def _precision(x: jax.Array) -> jax.lax.Precision | None:
    return jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None


def _ragged_dot(
    problem: Problem, x_TD: jax.Array, w_EDF: jax.Array, group_sizes_E: jax.Array
) -> jax.Array:
    """The compiler's own; what it leaves in the rows of padding is not said."""
    end_E = group_ends(group_sizes_E, problem.num_rows)
    sizes_E = jnp.diff(end_E, prepend=jnp.zeros(1, jnp.int32))
    out_TF = jax.lax.ragged_dot(
        x_TD, w_EDF, sizes_E, precision=_precision(x_TD), preferred_element_type=jnp.float32
    )
    is_padding_T = jnp.arange(problem.num_rows, dtype=jnp.int32) >= end_E[-1]
    return jnp.where(is_padding_T[:, None], 0.0, out_TF).astype(problem.out_dtype)
