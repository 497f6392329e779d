"""Packed kernels in a model: which rows of a product are needed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.ops.packed import LiveRows, for_live_rows, multiply_packed, pack_kernel
from pallas_kernels import native

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))


def random_bf16(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), jnp.bfloat16)


@pytest.fixture
def params() -> dict:
    return {"up": {"kernel": pack_kernel(random_bf16(8, 6))}, "norm": jnp.ones(8)}


def test_rows_that_are_not_live_come_out_as_zeros(params: dict) -> None:
    marked = for_live_rows(params, LiveRows(jnp.int32(3), 5))
    assert marked["norm"] is params["norm"]
    x_TD = random_bf16(5, 8)
    all_TF = multiply_packed(x_TD, params["up"]["kernel"])
    live_TF = multiply_packed(x_TD, marked["up"]["kernel"])
    np.testing.assert_array_equal(live_TF[:3], all_TF[:3])
    assert all_TF[3:].any()
    assert not live_TF[3:].any()


@pytest.mark.parametrize("shape", [(4, 8), (2, 5, 8), (5, 5, 8)])
def test_rows_that_are_not_those_of_the_step_are_all_live(params: dict, shape: tuple) -> None:
    marked = for_live_rows(params, LiveRows(jnp.int32(3), 5))
    x = random_bf16(*shape)
    results = [multiply_packed(x, tree["up"]["kernel"]) for tree in (params, marked)]
    np.testing.assert_array_equal(*results)
