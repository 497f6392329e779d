"""Sets of token ids as packed bits: id ``v`` is bit ``v % 32`` of word ``v // 32``."""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

BITS = 32


def num_words(vocab_size: int) -> int:
    """``W``: the 32-bit words that hold one bit an id."""
    return -(-vocab_size // BITS)


def pack_ids(ids: Iterable[int] | np.ndarray, vocab_size: int) -> np.ndarray:
    """uint32 ``[W]`` with the bits of ``ids`` set. Ids outside the vocabulary are left out."""
    ids = ids if isinstance(ids, np.ndarray) else np.fromiter(ids, np.int64)
    is_member = np.zeros(num_words(vocab_size) * BITS, np.bool_)
    is_member[ids[(ids >= 0) & (ids < vocab_size)]] = True
    return np.packbits(is_member, bitorder="little").view("<u4").astype(np.uint32)


def all_ids(vocab_size: int) -> np.ndarray:
    """uint32 ``[W]`` with every id's bit set, and those beyond the vocabulary clear."""
    return pack_ids(np.arange(vocab_size), vocab_size)


def unpack(words_SW: jax.Array, vocab_size: int) -> jax.Array:
    """Bool ``[S, V]`` from uint32 ``[S, W]``."""
    shifts = jnp.arange(BITS, dtype=jnp.uint32)[None, None, :]
    bits_SW32 = (words_SW[:, :, None] >> shifts) & jnp.uint32(1)
    return bits_SW32.reshape(words_SW.shape[0], -1)[:, :vocab_size] != 0


def contains(words_SW: jax.Array, ids_S: jax.Array) -> jax.Array:
    """Bool ``[S]``: whether each row's set holds that row's id."""
    words_S = jnp.take_along_axis(words_SW, (ids_S // BITS)[:, None], axis=1)[:, 0]
    return (words_S >> (ids_S % BITS).astype(jnp.uint32)) & jnp.uint32(1) != 0
