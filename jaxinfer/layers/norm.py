"""RMSNorm and LayerNorm as a module: the weights plus one op call."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxinfer.config import NormSpec
from jaxinfer.layers.parameter import KeySource, ones, parameter, zeros
from jaxinfer.ops.norm import normalize


class Norm(nnx.Module):
    """Normalises the last axis, of size ``width``."""

    def __init__(self, spec: NormSpec, width: int, dtype: jnp.dtype, *, rngs: KeySource):
        init = zeros if spec.unit_offset else ones
        self.spec = spec
        self.scale = parameter(rngs, (width,), dtype, (None,), init)
        self.bias = parameter(rngs, (width,), dtype, (None,), zeros) if spec.bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        bias = None if self.bias is None else self.bias.get_value()
        return normalize(self.spec, x, self.scale.get_value(), bias)
