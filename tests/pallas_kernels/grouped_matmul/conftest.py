"""Rows of groups, beside padding and weights that must not be touched."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import grouped_matmul
from pallas_kernels.grouped_matmul.tpu_tuning import TpuTiles
from pallas_kernels.grouped_matmul.xla_tuning import XlaTiles
from tests.pallas_kernels.on_chip import interpret_of


@dataclass(frozen=True, kw_only=True)
class Call:
    """The arrays of one call. Padding rows and the weights of empty groups are NaN."""

    x_TD: jax.Array
    w_EDF: jax.Array
    group_sizes_E: jax.Array
    w_scale_EF: jax.Array | None = None


def make_call(
    sizes: Sequence[int],
    *,
    num_rows: int = 40,
    depth: int = 256,
    columns: int = 256,
    dtype: str = "float32",
    w_dtype: str | None = None,
    seed: int = 0,
) -> Call:
    """Groups of these sizes; those that do not fit are cut."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_rows, depth))
    shape = (len(sizes), depth, columns)
    w = rng.integers(-100, 101, size=shape) if w_dtype == "int8" else rng.normal(size=shape)
    left = num_rows
    for group, size in enumerate(sizes):
        used = min(max(size, 0), left)
        left -= used
        if used == 0 and w_dtype != "int8":
            w[group] = np.nan
    x[num_rows - left :] = np.nan
    scale = None
    if w_dtype is not None:
        scale = jnp.asarray(rng.uniform(0.01, 0.02, size=shape[::2]), jnp.float32)
    return Call(
        x_TD=jnp.asarray(x, dtype),
        w_EDF=jnp.asarray(w, w_dtype or dtype),
        group_sizes_E=jnp.asarray(sizes, jnp.int32),
        w_scale_EF=scale,
    )


@functools.cache
def _multiply(implementation: str, **options) -> Callable[..., jax.Array]:
    def run(call: Call) -> jax.Array:
        return grouped_matmul(
            call.x_TD,
            call.w_EDF,
            call.group_sizes_E,
            w_scale_EF=call.w_scale_EF,
            implementation=implementation,
            **options,
        )

    return jax.jit(run)


jax.tree_util.register_dataclass(Call)


@pytest.fixture(scope="session")
def call_of() -> Callable[..., Call]:
    return make_call


@pytest.fixture(scope="session")
def multiply() -> Callable[..., np.ndarray]:
    """``multiply(implementation, call, **options)``.

    Tiles are made small, so that small calls have many of each.
    """

    def run(implementation: str, call: Call, interpret: Any = True, **options) -> np.ndarray:
        interpret = interpret_of(implementation, interpret)
        small = TpuTiles(rows=8, depth=128, columns=128)
        part = XlaTiles(rows=8, depth=128)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TpuTiles, "heuristic", staticmethod(lambda _: small))
            if call.x_TD.shape[1] % part.depth == 0:
                patch.setattr(XlaTiles, "heuristic", staticmethod(lambda _: part))
            # The interpreter calls back into Python, and must find the threads of the CPU free.
            jax.block_until_ready(call)
            out_TF = jax.block_until_ready(
                _multiply(implementation, interpret=interpret, **options)(call)
            )
        return np.asarray(out_TF)

    return run


@pytest.fixture(scope="session")
def assert_equals_the_reference(multiply, assert_close) -> Callable[..., None]:
    """Equality up to the rounding of sums in float32, after which two bfloat16 are neighbours."""

    def check(implementation: str, call: Call, **options) -> None:
        expected = multiply("reference", call, **options)
        out = multiply(implementation, call, **options)
        assert out.dtype == expected.dtype
        out, expected, dtype = out.astype(np.float32), expected.astype(np.float32), out.dtype.name
        assert_close(out, expected, dtype, near_zero="cancelled sums")

    return check
