"""Matrix products with weights, accumulated in float32."""

import jax
import jax.numpy as jnp


def linear(x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None) -> jax.Array:
    """``x [..., in] @ kernel [in, out] + bias [out]`` as float32.

    The product is asked for in float32 also for 16-bit weights: it is how every unit accumulates,
    and XLA:CPU converts the whole of the weights for a 16-bit result.
    """
    y = jnp.matmul(x, kernel, preferred_element_type=jnp.float32)
    return y if bias is None else y + jnp.broadcast_to(bias.astype(jnp.float32), y.shape)


def tied_head(hidden_RD: jax.Array, embedding_VD: jax.Array) -> jax.Array:
    """Float32 logits ``[R, V]`` of hidden states against the rows of the embedding."""
    return jnp.einsum("RD,VD->RV", hidden_RD, embedding_VD, preferred_element_type=jnp.float32)
