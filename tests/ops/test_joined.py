"""Kernels of one input, joined: the products of each alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxinfer.layers.linear import Linear, apply_each
from jaxinfer.ops.joined import InJoined, join, linear_joined
from jaxinfer.ops.linear import linear


def random(seed: int, *shape: int, dtype: str = "float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_joined_kernels_multiply_as_each_alone(dtype: str) -> None:
    x = random(0, 5, 48, dtype=dtype)
    kernels = [random(1 + i, 48, size, dtype=dtype) for i, size in enumerate((96, 32, 32))]
    for product, kernel in zip(linear_joined(x, join(kernels)), kernels, strict=True):
        assert product.shape == (5, kernel.shape[1])
        assert product.dtype == jnp.float32
        np.testing.assert_allclose(product, linear(x, kernel), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_layers_with_joined_kernels_are_the_layers_they_were(bias: bool) -> None:
    def layers() -> list[Linear]:
        rngs = nnx.Rngs(0)
        dtype, axes = jnp.dtype("float32"), ("embed", "mlp")
        return [Linear(16, size, dtype, axes, bias=bias, rngs=rngs) for size in (8, 24)]

    apart, joined, x = layers(), layers(), random(0, 3, 16)
    for number, (one, other) in enumerate(zip(apart, joined, strict=True)):
        if bias:
            for layer in (one, other):
                assert layer.bias is not None
                layer.bias.set_value(random(number, *layer.bias.get_value().shape))
    joined[0].kernel.set_value(join([layer.kernel.get_value() for layer in joined]))
    joined[1].kernel.set_value(InJoined())
    for one, other in zip(apply_each(joined, x), [layer(x) for layer in apart], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
