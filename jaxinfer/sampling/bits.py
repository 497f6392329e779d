"""Sets of token ids as packed bits (``jaxinfer.bits``), on the device."""

import jax
import jax.numpy as jnp

from jaxinfer.bits import BITS


def unpack(words_SW: jax.Array, vocab_size: int) -> jax.Array:
    """Bool ``[S, V]`` from uint32 ``[S, W]``."""
    shifts = jnp.arange(BITS, dtype=jnp.uint32)[None, None, :]
    bits_SW32 = (words_SW[:, :, None] >> shifts) & jnp.uint32(1)
    return bits_SW32.reshape(words_SW.shape[0], -1)[:, :vocab_size] != 0


def contains(words_SW: jax.Array, ids_S: jax.Array) -> jax.Array:
    """Bool ``[S]``: whether each row's set holds that row's id."""
    words_S = jnp.take_along_axis(words_SW, (ids_S // BITS)[:, None], axis=1)[:, 0]
    return (words_S >> (ids_S % BITS).astype(jnp.uint32)) & jnp.uint32(1) != 0
