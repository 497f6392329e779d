"""A matrix product with its weights."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from jaxinfer.layers.parameter import KeySource, fan_in, parameter, zeros
from jaxinfer.ops.joined import JoinedKernel, linear_joined
from jaxinfer.ops.linear import linear


class Linear(nnx.Module):
    """``x @ kernel + bias`` over the last axis; ``axes`` are the logical names of (in, out)."""

    def __init__(
        self,
        size_in: int,
        size_out: int,
        dtype: jnp.dtype,
        axes: tuple[str | None, str | None],
        *,
        bias: bool = False,
        rngs: KeySource,
    ):
        self.kernel = parameter(rngs, (size_in, size_out), dtype, axes, fan_in)
        self.bias = parameter(rngs, (size_out,), dtype, axes[1:], zeros) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Float32 ``[..., out]`` from ``x [..., in]``."""
        return self.add_bias(linear(x, self.kernel.get_value()))

    def add_bias(self, y: jax.Array) -> jax.Array:
        """``y [..., out]`` with the bias, if there is one, in float32."""
        if self.bias is None:
            return y
        return y + jnp.broadcast_to(self.bias.get_value().astype(jnp.float32), y.shape)


def apply_each(layers: Sequence[Linear], x: jax.Array) -> list[jax.Array]:
    """What each layer makes of the same ``x``; in one product where their kernels were joined."""
    first = layers[0].kernel.get_value()
    if not isinstance(first, JoinedKernel):
        return [layer(x) for layer in layers]
    products = linear_joined(x, first)
    return [layer.add_bias(y) for layer, y in zip(layers, products, strict=True)]
