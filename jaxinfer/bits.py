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
    ids = ids[(ids >= 0) & (ids < vocab_size)]
    words_W = np.zeros(num_words(vocab_size), np.uint32)
    np.bitwise_or.at(words_W, ids // BITS, np.uint32(1) << (ids % BITS).astype(np.uint32))
    return words_W


def all_ids(vocab_size: int) -> np.ndarray:
    """uint32 ``[W]`` with every id's bit set, and those beyond the vocabulary clear."""
    words_W = np.full(num_words(vocab_size), 2**BITS - 1, np.uint32)
    words_W[-1] >>= len(words_W) * BITS - vocab_size
    return words_W


def unpack_ids(words_W: np.ndarray) -> np.ndarray:
    """The ids whose bits are set, ascending (int64)."""
    bits = np.unpackbits(words_W.astype("<u4").view(np.uint8), bitorder="little")
    return np.flatnonzero(bits)
