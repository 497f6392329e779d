"""RMSNorm and LayerNorm as a module: the weights plus one op call."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxinfer.config import NormSpec
from jaxinfer.layers.parameter import KeySource, ones, parameter, zeros
from jaxinfer.ops.norm import normalize


class Norm(nnx.Module):
    """Normalises the last axis, of size ``width``; with ``num_heads`` there are weights for each of
    the heads that the axis before it counts.
    """

    def __init__(
        self,
        spec: NormSpec,
        width: int,
        dtype: jnp.dtype,
        *,
        num_heads: int | None = None,
        rngs: KeySource,
    ):
        init = zeros if spec.unit_offset else ones
        shape = (width,) if num_heads is None else (num_heads, width)
        axes = (None,) * len(shape)
        self.spec = spec
        self.scale = parameter(rngs, shape, dtype, axes, init) if spec.weight else None
        self.bias = parameter(rngs, shape, dtype, axes, zeros) if spec.bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        scale = None if self.scale is None else self.scale.get_value()
        bias = None if self.bias is None else self.bias.get_value()
        return normalize(self.spec, x, scale, bias)


def maybe_normed(norm: Norm | None, x: jax.Array) -> jax.Array:
    """``x`` as it is where there is no norm."""
    return x if norm is None else norm(x)
