"""What one block format is, and the two readings all of them share: half floats and nibbles."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

#: Blocks decoded at once: the float32 result of a chunk stays inside the second-level cache.
_CHUNK_BYTES = 1 << 18
_FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True, kw_only=True)
class BlockFormat:
    """A storage format of ggml.

    Attributes:
        number: its id in GGUF files (``enum ggml_type``).
        name: its name in ggml, as ``Q4_1``.
        elements: numbers in a block.
        nbytes: bytes of a block.
        dtype: what the numbers become when read.
        decode: writes the values of ``blocks`` ``[n, nbytes]`` uint8 into ``out`` ``[n,
            elements]``.
    """

    number: int
    name: str
    elements: int
    nbytes: int
    decode: Callable[[np.ndarray, np.ndarray], None]
    dtype: np.dtype = _FLOAT32


def dequantize(blocks: np.ndarray, block_format: BlockFormat, out: np.ndarray) -> None:
    """Decodes blocks, a cache-sized chunk at a time.

    Args:
        blocks: ``[n, block_format.nbytes]`` uint8, contiguous.
        block_format: what the bytes mean.
        out: ``[n, block_format.elements]`` of ``block_format.dtype``, contiguous; overwritten.
    """
    rows = max(1, _CHUNK_BYTES // (4 * block_format.elements))
    # A corrupt file may hold infinite or NaN scales; such weights are the model's problem, not a
    # warning.
    with np.errstate(all="ignore"):
        for start in range(0, len(blocks), rows):
            block_format.decode(blocks[start : start + rows], out[start : start + rows])


def halves(blocks: np.ndarray, start: int) -> np.ndarray:
    """The float16 at byte ``start`` of each block, as float32 ``[n, 1]``."""
    return blocks[:, start : start + 2].copy().view(np.float16).astype(np.float32)


def words(blocks: np.ndarray, start: int, stop: int, dtype: type[np.unsignedinteger]) -> np.ndarray:
    """Bytes ``start:stop`` of each block as little-endian unsigned integers ``[n, count]``."""
    return blocks[:, start:stop].copy().view(np.dtype(dtype).newbyteorder("<"))


def nibbles(packed: np.ndarray) -> np.ndarray:
    """``[..., b]`` bytes as ``[..., 2, b]``: all low halves, then all high halves."""
    return np.stack((packed & np.uint8(15), packed >> np.uint8(4)), axis=-2)


def interleaved_nibbles(packed: np.ndarray) -> np.ndarray:
    """``[..., b]`` bytes as ``[..., 2 b]``: low half, high half, byte by byte."""
    pairs = np.stack((packed & np.uint8(15), packed >> np.uint8(4)), axis=-1)
    return pairs.reshape(*packed.shape[:-1], -1)


def bit_planes(packed: np.ndarray, bits: int) -> np.ndarray:
    """``[..., b]`` bytes as ``[..., 8 / bits, b]``: fields of ``bits`` bits, the lowest first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return (packed[..., None, :] >> shifts) & np.uint8((1 << bits) - 1)
