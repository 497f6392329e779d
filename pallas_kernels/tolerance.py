"""What rounding may make of equal results, by the dtype that was rounded to."""

import jax
import numpy as np

TOLERANCE = {
    "float32": 2e-5,
    "bfloat16": 2.0**-7,
    "float16": 2.0**-10,
    # Of float32, the Hopper kernel of ragged paged attention multiplies the 16 leading bits.
    "two bfloat16": 2.0**-14,
    # Of sums of hundreds of products that cancel: far from zero they are as any of their dtype.
    "cancelled sums": 1e-4,
}
"""What rounding of results of a dtype, and of sums in float32, may make of equal numbers."""


def errors_of(
    out: jax.typing.ArrayLike,
    expected: jax.typing.ArrayLike,
    dtype: str,
    near_zero: str | None = None,
) -> dict[str, float]:
    """How far rows ``[n, ...]`` are from what is expected; 1 is what is allowed.

    Both are measured by the root of the mean square of the expected row, for an average of
    thousands of values is small, and would be equal to anything that is small. A row of zeros
    allows zeros alone.

    - ``error``: of a number; ``near_zero`` names what else zeros may be off by.
    - ``row_error``: the root of the mean square of a row's.
    """
    got, wanted = (np.asarray(x, np.float64) for x in (out, expected))
    got, wanted = (x.reshape(x.shape[0], -1) for x in (got, wanted))
    size = np.sqrt(np.mean(wanted**2, axis=1, keepdims=True))
    size = np.where(size > 0, size, np.finfo(np.float32).tiny)
    difference = np.abs(got - wanted) / size
    allowed = TOLERANCE[near_zero or dtype] + TOLERANCE[dtype] * np.abs(wanted) / size
    row = np.sqrt(np.mean(difference**2, axis=1)) / TOLERANCE[dtype]
    return {"error": _worst(difference / allowed), "row_error": _worst(row)}


def _worst(errors: np.ndarray) -> float:
    """The largest; what is no number is as wrong as can be, and JSON can say it."""
    largest = float(np.finfo(np.float32).max)
    return float(np.nan_to_num(errors, nan=largest, posinf=largest).max())
