"""A table of rows looked up by id."""

import jax
import jax.numpy as jnp
from flax import nnx

from jaxinfer.layers.parameter import KeySource, embedding, parameter
from jaxinfer.ops.linear import look_up


class Embedding(nnx.Module):
    """``embedding [rows, width]``; ``rows_axis`` is the logical name of its first axis."""

    def __init__(
        self, rows: int, width: int, dtype: jnp.dtype, rows_axis: str | None, *, rngs: KeySource
    ):
        axes = (rows_axis, "embed")
        self.embedding = parameter(rngs, (rows, width), dtype, axes, embedding)

    def __call__(self, ids_T: jax.Array) -> jax.Array:
        """The rows ``[T, width]`` of ``ids_T``; ids outside the table read its nearest row."""
        return look_up(self.embedding.get_value(), ids_T)
