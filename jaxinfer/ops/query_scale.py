"""The factor by which queries grow with their position."""

import jax
import jax.numpy as jnp

from jaxinfer.config import QueryTemperature


def query_scale(spec: QueryTemperature, positions_T: jax.Array) -> jax.Array:
    """Float32 ``[T]`` of int32 positions ``[T]``."""
    with jax.named_scope("query_scale"):
        steps_T = (positions_T + jnp.int32(spec.offset)) // jnp.int32(spec.interval)
        return 1.0 + jnp.float32(spec.beta) * jnp.log1p(steps_T.astype(jnp.float32))
