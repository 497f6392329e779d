"""Matrix products with weights, accumulated in float32."""

import math

import jax
import jax.numpy as jnp

from jaxinfer.ops.blocked import FEW_ROWS, BlockedEmbedding, BlockedKernel, multiply_few
from jaxinfer.ops.packed import (
    PackedEmbedding,
    PackedKernel,
    look_up_packed,
    multiply_packed,
)

Kernel = jax.Array | BlockedKernel | PackedKernel
Table = jax.Array | BlockedEmbedding | PackedEmbedding


def linear(x: jax.Array, kernel: Kernel) -> jax.Array:
    """``x [..., in] @ kernel [in, out]`` as float32.

    The product is asked for in float32 also for 16-bit weights: it is how every unit accumulates,
    and XLA:CPU converts the whole of the weights for a 16-bit result.
    """
    if isinstance(kernel, PackedKernel):
        return multiply_packed(x, kernel)
    if isinstance(kernel, BlockedKernel):
        if math.prod(x.shape[:-1]) <= FEW_ROWS:
            y = multiply_few(x.reshape(-1, x.shape[-1]), kernel.blocks_nIo)
            return y.reshape(*x.shape[:-1], -1)
        kernel = kernel.plain_IO
    return _multiply(x, kernel)


def look_up(embedding_VD: Table, ids_T: jax.Array) -> jax.Array:
    """The rows ``[T, D]`` of ``ids_T``; ids outside the table read its nearest row."""
    if isinstance(embedding_VD, PackedEmbedding):
        return look_up_packed(embedding_VD, ids_T)
    rows_VD = embedding_VD.rows_VD if isinstance(embedding_VD, BlockedEmbedding) else embedding_VD
    return rows_VD.at[ids_T].get(mode="clip")


def tied_head(hidden_RD: jax.Array, embedding_VD: Table) -> jax.Array:
    """Float32 logits ``[R, V]`` of hidden states against the rows of the embedding."""
    if isinstance(embedding_VD, PackedEmbedding):
        return multiply_packed(hidden_RD, embedding_VD.kernel_DV)
    if isinstance(embedding_VD, BlockedEmbedding):
        if hidden_RD.shape[0] <= FEW_ROWS:
            return multiply_few(hidden_RD, embedding_VD.blocks_nIo)
        embedding_VD = embedding_VD.rows_VD
    return jnp.einsum("RD,VD->RV", hidden_RD, embedding_VD, preferred_element_type=jnp.float32)


def _multiply(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32)
