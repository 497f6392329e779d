"""A product, at full size, against the reference in float32."""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.drawn import drawn
from pallas_kernels.grouped_matmul import grouped_matmul
from pallas_kernels.tolerance import errors_of


def errors(
    x_TD: jax.Array,
    w_EDF: jax.Array,
    group_sizes_E: jax.Array,
    w_scale_EF: jax.Array | None,
    out_TF: jax.Array,
) -> dict[str, float]:
    """See ``errors_of``. Rows do not depend on each other: the reference has those drawn alone."""
    sizes = np.asarray(group_sizes_E)
    row_n = drawn([*sizes, len(x_TD) - sizes.sum()])
    group_n = np.searchsorted(np.cumsum(sizes), row_n, side="right")  # Of padding: one too many.
    drawn_E = np.bincount(group_n, minlength=sizes.size + 1)[: sizes.size]
    expected_nF = grouped_matmul(
        x_TD[row_n],
        w_EDF,
        jnp.asarray(drawn_E, jnp.int32),
        w_scale_EF=w_scale_EF,
        preferred_element_type="float32",
        implementation="reference",
    )
    found = errors_of(out_TF[row_n], expected_nF, out_TF.dtype.name, near_zero="cancelled sums")
    return {**found, "checked_rows": row_n.size}
