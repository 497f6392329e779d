"""Time of a grouped matmul, see ``pallas_kernels.benchmark``.

``python -m pallas_kernels.grouped_matmul.bench [--spec NAME] [--implementation NAME] [--check]
[--json]``

A call cannot take less than the rows in use, the matrices of groups that have rows, and the result,
or than the products of the rows that are no padding.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.benchmark import Case, Operation, each_drawn, main, random_like
from pallas_kernels.grouped_matmul import check, grouped_matmul
from pallas_kernels.grouped_matmul.problem import SCALED_DTYPES
from pallas_kernels.grouped_matmul.specs import ACCELERATOR_SPECS, SPECS, Spec


def case(spec: Spec, dtype: str, implementation: str | None = None) -> Case:
    """One product, on random numbers. Rows are carried."""
    w_dtype = spec.w_dtype or dtype

    def run(
        x_TD: jax.Array, w_EDF: jax.Array, group_sizes_E: jax.Array, w_scale_EF: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        out_TF = grouped_matmul(
            x_TD, w_EDF, group_sizes_E, w_scale_EF=w_scale_EF, implementation=implementation
        )
        return out_TF, x_TD

    def matrix(key: jax.Array) -> jax.Array:
        return random_like(key, (1, spec.depth, spec.columns), w_dtype)

    draw_matrices = each_drawn(matrix, spec.num_groups)

    def make() -> tuple[jax.Array, tuple]:
        keys = jax.random.split(jax.random.key(0), 3)
        x_TD = jax.random.normal(keys[0], (spec.rows, spec.depth), jnp.float32)
        w_EDF = draw_matrices(keys[1])
        scale_EF = None
        if spec.w_dtype:
            shape = (spec.num_groups, spec.columns)
            scale_EF = jax.random.uniform(keys[2], shape, jnp.float32, 0.01, 0.02)
        return x_TD.astype(dtype), (w_EDF, jnp.asarray(spec.group_sizes()), scale_EF)

    def errors(before: jax.Array, arguments: tuple, out_TF: jax.Array, _: jax.Array) -> dict:
        w_EDF, group_sizes_E, w_scale_EF = arguments
        return check.errors(before, w_EDF, group_sizes_E, w_scale_EF, out_TF)

    itemsize = jnp.dtype(dtype).itemsize
    return Case(
        run=run,
        make=make,
        errors=errors,
        num_bytes=spec.num_bytes(itemsize, jnp.dtype(w_dtype).itemsize, itemsize),
        flops=spec.flops,
        facts={"w_dtype": w_dtype, "rows": spec.rows, "groups": spec.num_groups},
    )


OPERATION = Operation(
    name="grouped_matmul",
    specs=SPECS,
    large_specs=ACCELERATOR_SPECS,
    case=case,
    changes={"w_dtype": SCALED_DTYPES},
)

if __name__ == "__main__":
    main(OPERATION)
