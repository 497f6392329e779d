"""Grouped matmul in plain XLA: a loop over tiles of rows, as many as there are.

On CPU and GPU ``lax.ragged_dot`` multiplies every row by every group's matrix. On TPU, where it is
a kernel of the compiler's own, it is used.
"""

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.grouped_matmul.problem import Problem
from pallas_kernels.grouped_matmul.tuning import XlaTiles, tiles_for
from pallas_kernels.grouped_matmul.visits import group_ends, list_visits


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
    tiles = tiles_for(problem, XlaTiles)
    rows, columns = tiles.rows, tiles.columns
    num_strips = problem.columns // columns
    visits = list_visits(group_sizes_E, problem.num_rows, rows, align=1, has_padding=False)
    # A slice is never longer than what it is cut from.
    missing = max(rows - problem.num_rows, 0)
    x_TD = jnp.pad(x_TD, ((0, missing), (0, 0)))
    is_cpu = platform == "cpu"
    if is_cpu:
        x_TD = x_TD.astype(jnp.float32)
    last_row = x_TD.shape[0] - rows

    def one_tile(nth: jax.Array, out_TF: jax.Array) -> jax.Array:
        visit = jax.lax.div(nth, jnp.int32(num_strips))
        column = jax.lax.rem(nth, jnp.int32(num_strips)) * columns
        group = visits.group_V[visit]
        row = jnp.minimum(visits.row_V[visit], last_row)
        x_tD = jax.lax.dynamic_slice(x_TD, (row, 0), (rows, problem.depth))
        w_Df = _strip(w_EDF, group, column, columns, is_cpu=is_cpu).astype(x_tD.dtype)
        new_tf = jnp.dot(
            x_tD,
            w_Df,
            precision=_precision(x_tD),
            preferred_element_type=jnp.float32,
        )
        if w_scale_EF is not None:
            new_tf *= jax.lax.dynamic_slice(w_scale_EF, (group, column), (1, columns))
        nth_row_t = row + jnp.arange(rows, dtype=jnp.int32)
        is_own_t = (nth_row_t >= visits.row_V[visit]) & (nth_row_t < visits.end_V[visit])
        old_tf = jax.lax.dynamic_slice(out_TF, (row, column), (rows, columns))
        new_tf = jnp.where(is_own_t[:, None], new_tf, old_tf)
        return jax.lax.dynamic_update_slice(out_TF, new_tf, (row, column))

    out_TF = jnp.zeros((x_TD.shape[0], problem.columns), jnp.float32)
    out_TF = jax.lax.fori_loop(0, visits.count_1[0] * num_strips, one_tile, out_TF)
    return out_TF[: problem.num_rows].astype(problem.out_dtype)


def _strip(
    w_EDF: jax.Array, group: jax.Array, column: jax.Array, columns: int, *, is_cpu: bool
) -> jax.Array:
    """Some columns of one group's matrix.

    XLA:CPU slices no small floats: it converts what they are cut from, all of it, and does so
    before the loop. So there they are cut as integers, and the barrier makes the array depend on
    the loop, or a copy of all of it as integers would be made before.
    """
    _, depth, _ = w_EDF.shape
    dtype = w_EDF.dtype
    is_small = is_cpu and jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4
    if is_small:
        w_EDF, group = jax.lax.optimization_barrier((w_EDF, group))
        w_EDF = jax.lax.bitcast_convert_type(w_EDF, f"uint{8 * dtype.itemsize}")
    w_Df = jax.lax.dynamic_slice(w_EDF, (group, 0, column), (1, depth, columns))[0]
    return jax.lax.bitcast_convert_type(w_Df, dtype) if is_small else w_Df


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
