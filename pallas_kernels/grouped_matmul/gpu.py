"""Grouped matmul on a Hopper GPU: plain XLA around the kernel of ``gpu_kernel.py``."""

import jax
import jax.numpy as jnp

from pallas_kernels.grouped_matmul import gpu_kernel
from pallas_kernels.grouped_matmul.gpu_tuning import gpu_tiles_for
from pallas_kernels.grouped_matmul.problem import Problem
from pallas_kernels.grouped_matmul.visits import list_visits


def grouped_matmul(
    problem: Problem,
    x_TD: jax.Array,
    w_EDF: jax.Array,
    group_sizes_E: jax.Array,
    w_scale_EF: None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """Where the rows are no multiple of 8, or fewer than those of a tile, x is copied."""
    tiles = gpu_tiles_for(problem)
    visits = list_visits(
        group_sizes_E,
        problem.num_rows,
        tiles.rows,
        align=gpu_kernel.ROW_ALIGN,
        has_padding=True,
    )
    num_x_rows = max(
        -(-problem.num_rows // gpu_kernel.ROW_ALIGN) * gpu_kernel.ROW_ALIGN, tiles.rows
    )
    x_TD = jnp.pad(x_TD, ((0, num_x_rows - problem.num_rows), (0, 0)))
    # A tile that would reach beyond the rows lies before their end, and does not store again what
    # another has stored.
    first_V = jnp.minimum(visits.row_V, num_x_rows - tiles.rows)
    start_V = jnp.maximum(visits.start_V, visits.row_V)
    end_V = jnp.minimum(visits.end_V, visits.row_V + tiles.rows)
    visits_V4 = jnp.stack([visits.group_V, first_V, start_V, end_V], axis=1)
    plan = gpu_kernel.plan(problem, tiles, interpret=interpret)
    return gpu_kernel.multiply(plan, visits.count_1, visits_V4, x_TD, w_EDF)
