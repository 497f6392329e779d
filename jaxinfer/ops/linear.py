"""Matrix products with weights, accumulated in float32."""

import math

import jax
import jax.numpy as jnp

from jaxinfer.ops.blocked import FEW_ROWS, BlockedEmbedding, BlockedKernel, multiply_few


def linear(x: jax.Array, kernel: jax.Array | BlockedKernel) -> jax.Array:
    """``x [..., in] @ kernel [in, out]`` as float32.

    The product is asked for in float32 also for 16-bit weights: it is how every unit accumulates,
    and XLA:CPU converts the whole of the weights for a 16-bit result.
    """
    if isinstance(kernel, BlockedKernel):
        if math.prod(x.shape[:-1]) <= FEW_ROWS:
            y = multiply_few(x.reshape(-1, x.shape[-1]), kernel.blocks_nIo)
            return y.reshape(*x.shape[:-1], -1)
        kernel = kernel.plain_IO
    return _multiply(x, kernel)


def look_up(embedding_VD: jax.Array | BlockedEmbedding, ids_T: jax.Array) -> jax.Array:
    """The rows ``[T, D]`` of ``ids_T``; ids outside the table read its nearest row."""
    rows_VD = embedding_VD.rows_VD if isinstance(embedding_VD, BlockedEmbedding) else embedding_VD
    return rows_VD.at[ids_T].get(mode="clip")


def tied_head(hidden_RD: jax.Array, embedding_VD: jax.Array | BlockedEmbedding) -> jax.Array:
    """Float32 logits ``[R, V]`` of hidden states against the rows of the embedding."""
    if isinstance(embedding_VD, BlockedEmbedding):
        if hidden_RD.shape[0] <= FEW_ROWS:
            return multiply_few(hidden_RD, embedding_VD.blocks_nIo)
        embedding_VD = embedding_VD.rows_VD
    return jnp.einsum("RD,VD->RV", hidden_RD, embedding_VD, preferred_element_type=jnp.float32)


def _multiply(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32)
