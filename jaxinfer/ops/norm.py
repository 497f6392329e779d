"""Normalisation over the last axis, in float32 whatever the input."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxinfer.config import NormSpec


def normalize(
    spec: NormSpec, x: jax.Array, scale: jax.Array | None, bias: jax.Array | None = None
) -> jax.Array:
    """RMSNorm or LayerNorm over the last axis; the result has ``x``'s shape and dtype.

    The weights have the shape of the last axis or axes of ``x``; None where nothing is learned.
    """
    with jax.named_scope("norm"):
        x32 = x.astype(jnp.float32)
        if spec.kind == "layer":
            x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
        x32 = x32 * lax.rsqrt(variance + jnp.float32(spec.eps))
        if scale is not None:
            weight = scale.astype(jnp.float32) + jnp.float32(1.0 if spec.unit_offset else 0.0)
            x32 = x32 * jnp.broadcast_to(weight, x32.shape)
        if bias is not None:
            x32 = x32 + jnp.broadcast_to(bias.astype(jnp.float32), x32.shape)
        return x32.astype(x.dtype)
