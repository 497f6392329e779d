"""What a call is, apart from its numbers; checked before anything is traced or launched."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

DTYPES = ("float32", "bfloat16")
"""Of ``x`` and of the result; unscaled weights have that of ``x``."""
SCALED_DTYPES = ("int8", "float8_e4m3fn", "float8_e5m2")
"""Of weights with a scale: bfloat16 holds each of their values exactly."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """``num_rows`` rows of ``depth`` numbers times one of ``num_groups`` matrices ``[depth,
    columns]``."""

    num_rows: int
    depth: int
    num_groups: int
    columns: int
    x_dtype: np.dtype
    w_dtype: np.dtype
    out_dtype: np.dtype

    @property
    def is_scaled(self) -> bool:
        return self.w_dtype.name in SCALED_DTYPES

    @property
    def flops(self) -> int:
        """Floating point operations, if no row is padding."""
        return 2 * self.num_rows * self.depth * self.columns


def describe(
    x_TD: jax.Array,
    w_EDF: jax.Array,
    group_sizes_E: jax.Array,
    w_scale_EF: jax.Array | None,
    preferred_element_type: jax.typing.DTypeLike | None,
) -> Problem:
    """The problem of a call. Raises ``ValueError`` for shapes and dtypes that contradict it."""
    _require(x_TD.ndim == 2 and 0 not in x_TD.shape, "shape of x_TD", x_TD.shape, "[T, D]")
    num_rows, depth = x_TD.shape
    is_stack = w_EDF.ndim == 3 and 0 not in w_EDF.shape and w_EDF.shape[1] == depth
    _require(is_stack, "shape of w_EDF", w_EDF.shape, f"[E, {depth}, F]")
    num_groups, _, columns = w_EDF.shape
    _require(
        group_sizes_E.shape == (num_groups,),
        "shape of group_sizes_E",
        group_sizes_E.shape,
        f"({num_groups},)",
    )
    _require(
        group_sizes_E.dtype == jnp.int32, "dtype of group_sizes_E", group_sizes_E.dtype, "int32"
    )
    # Sums of clamped sizes stay below this.
    _require(num_rows * num_groups < 2**31, "T * E", num_rows * num_groups, "below 2**31")
    x_dtype, w_dtype = np.dtype(x_TD.dtype), np.dtype(w_EDF.dtype)
    out_dtype = jnp.dtype(x_dtype if preferred_element_type is None else preferred_element_type)
    for name, dtype in (("dtype of x_TD", x_dtype), ("preferred_element_type", out_dtype)):
        _require(dtype.name in DTYPES, name, dtype.name, " or ".join(DTYPES))
    if w_scale_EF is None:
        _require(
            w_dtype == x_dtype,
            "dtype of w_EDF",
            w_dtype.name,
            f"{x_dtype.name} as x_TD, or, with w_scale_EF, {' or '.join(SCALED_DTYPES)}",
        )
    else:
        _require(
            w_dtype.name in SCALED_DTYPES,
            "dtype of w_EDF with w_scale_EF",
            w_dtype.name,
            " or ".join(SCALED_DTYPES),
        )
        shape = (num_groups, columns)
        _require(w_scale_EF.shape == shape, "shape of w_scale_EF", w_scale_EF.shape, f"{shape}")
        _require(
            w_scale_EF.dtype == jnp.float32, "dtype of w_scale_EF", w_scale_EF.dtype, "float32"
        )
    return Problem(
        num_rows=num_rows,
        depth=depth,
        num_groups=num_groups,
        columns=columns,
        x_dtype=x_dtype,
        w_dtype=w_dtype,
        out_dtype=out_dtype,
    )


def divisors(number: int, *, most: int | None = None) -> list[int]:
    """Divisors of ``number`` that are multiples of 128 and at most ``most``, but never none: the
    least, or ``number`` itself if it is no multiple of 128."""
    if number % 128:
        return [number]
    every = [n for n in range(128, number + 1, 128) if number % n == 0]
    return [n for n in every if most is None or n <= max(most, 128)]


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise ValueError(f"{name} = {value} is not allowed: it must be {allowed}")
