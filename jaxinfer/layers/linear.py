"""A matrix product with its weights."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxinfer.layers.parameter import KeySource, fan_in, parameter, zeros
from jaxinfer.ops.linear import linear


class Linear(nnx.Module):
    """``x @ kernel + bias`` over the last axis; ``axes`` are the logical names of (in, out)."""

    def __init__(
        self,
        size_in: int,
        size_out: int,
        dtype: jnp.dtype,
        axes: tuple[str, str],
        *,
        bias: bool = False,
        rngs: KeySource,
    ):
        self.kernel = parameter(rngs, (size_in, size_out), dtype, axes, fan_in)
        self.bias = parameter(rngs, (size_out,), dtype, axes[1:], zeros) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """Float32 ``[..., out]`` from ``x [..., in]``."""
        bias = None if self.bias is None else self.bias.get_value()
        return linear(x, self.kernel.get_value(), bias)
