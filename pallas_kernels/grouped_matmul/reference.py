"""Grouped matmul, plainly: every row times every group's matrix, of which one product is kept."""

import jax
import jax.numpy as jnp

from pallas_kernels.grouped_matmul.problem import Problem


def grouped_matmul(
    problem: Problem,
    x_TD: jax.Array,
    w_EDF: jax.Array,
    group_sizes_E: jax.Array,
    w_scale_EF: jax.Array | None,
) -> jax.Array:
    x_TD = x_TD.astype(jnp.float32)
    row_T = jnp.arange(problem.num_rows, dtype=jnp.int32)

    def one_group(group: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple:
        start, out_TF = carry
        left = problem.num_rows - start
        end = start + jnp.clip(group_sizes_E[group], 0, left)
        new_TF = jnp.dot(
            x_TD, w_EDF[group].astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
        )
        if w_scale_EF is not None:
            new_TF *= w_scale_EF[group][None, :]
        is_own_T = (row_T >= start) & (row_T < end)
        return end, jnp.where(is_own_T[:, None], new_TF, out_TF)

    zeros_TF = jnp.zeros((problem.num_rows, problem.columns), jnp.float32)
    start = (jnp.int32(0), zeros_TF)
    _, out_TF = jax.lax.fori_loop(0, problem.num_groups, one_group, start)
    return out_TF.astype(problem.out_dtype)
