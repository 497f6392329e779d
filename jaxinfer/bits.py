"""Sets of token ids as packed bits, on the host: id ``v`` is bit ``v % 32`` of word ``v // 32``."""

from collections.abc import Iterable

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


def unpack_ids(words_W: np.ndarray) -> np.ndarray:
    """The ids whose bits are set, ascending (int64)."""
    bits = np.unpackbits(words_W.astype("<u4").view(np.uint8), bitorder="little")
    return np.flatnonzero(bits)
