"""The matrix product of a mixture of experts that drops no token: groups of any size.

Follows MegaBlocks (arXiv 2211.15841): tokens lie sorted by expert, and each group of rows is
multiplied by its expert's matrix, without padding every group to the size of the largest.
"""

import importlib

import jax

from pallas_kernels import dispatch
from pallas_kernels.grouped_matmul.choice import choose
from pallas_kernels.grouped_matmul.problem import describe

__all__ = ["grouped_matmul"]


def grouped_matmul(
    x_TD: jax.Array,
    w_EDF: jax.Array,
    group_sizes_E: jax.Array,
    *,
    w_scale_EF: jax.Array | None = None,
    preferred_element_type: jax.typing.DTypeLike | None = None,
    implementation: str | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Multiplies each group of rows by the matrix of its group; returns ``out_TF``.

    - ``x_TD`` float32 or bfloat16: the first ``group_sizes[0]`` rows belong to group 0, the next
      ``group_sizes[1]`` to group 1, and so on. Rows beyond the sum are padding: never multiplied,
      may be NaN, and zero in the result.
    - ``w_EDF``: a matrix for each group, of the dtype of ``x``. That of an empty group is never
      multiplied and may be NaN.
    - ``group_sizes_E`` int32, 0 allowed. Negative sizes count as 0; where the sum exceeds T, the
      last groups are cut: whatever the numbers are, nothing out of bounds is read or written.
    - ``w_scale_EF`` float32: with it ``w`` is int8, float8_e4m3fn or float8_e5m2 and stands for
      ``w * w_scale[:, None, :]``.

    Products are summed in float32 and rounded once, to ``preferred_element_type``: float32 or
    bfloat16; None: the dtype of ``x``. In one compiled program, a row's result depends bit for bit
    on the row and its matrix alone, not on the other rows, nor on where it lies.

    ``implementation``: None for the first that can of ``dispatch.NAMES``, or one of them. None
    takes a kernel where the chip is its own: that of the mesh which is set (``jax.set_mesh``), else
    of JAX's default backend; a name is taken at its word. ``interpret`` runs a Pallas kernel in its
    interpreter; the others ignore it.

    Raises ``ValueError`` for shapes and dtypes that contradict this, and ``NoImplementation`` when
    no implementation (or not the named one) can run the call.
    """
    problem = describe(x_TD, w_EDF, group_sizes_E, w_scale_EF, preferred_element_type)
    chosen = choose(problem, implementation)
    dispatch.refuse_to_run("grouped_matmul", chosen, interpret, (x_TD, w_EDF, group_sizes_E))
    module = importlib.import_module(f"{__name__}.{chosen}")
    interpreted = {"interpret": interpret} if chosen in ("tpu", "gpu") else {}
    with jax.named_scope("grouped_matmul"):
        return module.grouped_matmul(problem, x_TD, w_EDF, group_sizes_E, w_scale_EF, **interpreted)
