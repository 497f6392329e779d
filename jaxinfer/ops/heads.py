"""Products that every head makes with numbers of its own."""

import jax
import jax.numpy as jnp
from jax import lax


def per_head(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """The einsum of two arrays that have a heads axis in common; float32.

    XLA:CPU has no product of 16-bit floats with such an axis; it widens both.
    """

    def narrow(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)

    def wide(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.einsum(equation, x.astype(jnp.float32), y.astype(jnp.float32))

    if x.dtype == jnp.float32 and y.dtype == jnp.float32:
        return wide(x, y)
    return lax.platform_dependent(x, y, cpu=wide, default=narrow)
