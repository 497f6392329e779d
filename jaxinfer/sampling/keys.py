"""Where randomness comes from: one uniform number a token, from (seed, sample index, position).

The key of a sample is the first 8 bytes of ``sha256(b"jaxinfer.sample" + seed + index)``, with seed
(modulo 2^64) and index as unsigned 64-bit integers, everything little-endian. The number for
position ``n`` is the upper 24 bits of the first word of ``threefry2x32(key, (0, n))`` (Salmon et
al., "Parallel random numbers: as easy as 1, 2, 3", 2011), times 2^-24. Neither depends on the
batch, the slot, the device or the version of JAX, so a seed keeps its meaning.
"""

import hashlib
import struct

import jax
import jax.numpy as jnp
import numpy as np


def sample_key(seed: int, sample_index: int) -> np.ndarray:
    """uint32 ``[2]``: the key of sample ``sample_index`` of a request with this seed."""
    message = b"jaxinfer.sample" + struct.pack("<QQ", seed % 2**64, sample_index)
    return np.frombuffer(hashlib.sha256(message).digest()[:8], "<u4").astype(np.uint32)


def uniforms(key_S2: jax.Array, position_S: jax.Array) -> jax.Array:
    """float32 ``[S]`` in [0, 1): the number of each row's key for its position (int32)."""

    def first_word(key_2: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.wrap_key_data(key_2, impl="threefry2x32")
        # fold_in is threefry2x32(key, (0, position)) itself; bits() would hash once more, in a way
        # that depends on a flag.
        return jax.random.key_data(jax.random.fold_in(key, position))[0]

    word_S = jax.vmap(first_word)(key_S2, position_S)
    return (word_S >> 8).astype(jnp.float32) * jnp.float32(2**-24)
