"""One declaration a weight: shape, dtype, logical axes and initialiser stand on one line."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from jaxinfer.shapes import Shape
from sharding import LogicalAxes

Initializer = Callable[[jax.Array, Shape, jnp.dtype], jax.Array]

#: Ones for the scale of a norm, zeros for a bias or for a scale used as ``1 + w``.
ones: Initializer = nnx.initializers.ones_init()
zeros: Initializer = nnx.initializers.zeros_init()
#: A matrix product keeps the variance of its input.
fan_in: Initializer = nnx.initializers.lecun_normal()
#: The same for each of several matrices ``[E, in, out]``.
fan_in_of_each: Initializer = nnx.initializers.lecun_normal(batch_axis=0)
#: Rows of an embedding.
embedding: Initializer = nnx.initializers.normal(stddev=0.02)
#: As far from zero as the logits beside it.
logit: Initializer = nnx.initializers.normal(stddev=1.0)


#: Where initialisers get their keys; None for a model of shapes alone.
KeySource = nnx.Rngs | None


def parameter(
    rngs: KeySource, shape: Shape, dtype: jnp.dtype, axes: LogicalAxes, init: Initializer
) -> nnx.Param:
    """A parameter whose ``axes`` metadata names what each dimension is, for the sharding rules."""
    if rngs is None:
        # Tracing the initialisers only for their shapes would take a deep model half a second.
        return nnx.Param(jax.ShapeDtypeStruct(shape, dtype), axes=axes)
    return nnx.Param(init(rngs.params(), shape, dtype), axes=axes)
