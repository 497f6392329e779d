"""Blocks with one float16 scale ``d`` and, in the ``_1`` forms, one float16 minimum ``m``.

Four- and five-bit blocks keep element ``i`` in the low and element ``i + 16`` in the high half of
byte ``i``; the fifth bits are a mask of 32 bits beside them.
"""

import numpy as np

from jaxinfer.quant.ggml.block_format import BlockFormat, halves


def _write_nibbles(packed: np.ndarray, out: np.ndarray) -> None:
    """``[n, 16]`` bytes into ``[n, 32]`` floats: low halves first."""
    out[:, :16] = packed & np.uint8(15)
    out[:, 16:] = packed >> np.uint8(4)


def _fifth_bits(mask: np.ndarray) -> np.ndarray:
    """``[n, 4]`` bytes as ``[n, 32]`` floats, 16 where the bit is set."""
    return np.unpackbits(mask, axis=1, bitorder="little") * np.float32(16)


def _q1_0(blocks: np.ndarray, out: np.ndarray) -> None:
    d = halves(blocks, 0)
    positive = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little")
    out[...] = np.where(positive, d, -d)


def _q4_0(blocks: np.ndarray, out: np.ndarray) -> None:
    _write_nibbles(blocks[:, 2:], out)
    out -= np.float32(8)
    out *= halves(blocks, 0)


def _q4_1(blocks: np.ndarray, out: np.ndarray) -> None:
    _write_nibbles(blocks[:, 4:], out)
    out *= halves(blocks, 0)
    out += halves(blocks, 2)


def _q5_0(blocks: np.ndarray, out: np.ndarray) -> None:
    _write_nibbles(blocks[:, 6:], out)
    out += _fifth_bits(blocks[:, 2:6])
    out -= np.float32(16)
    out *= halves(blocks, 0)


def _q5_1(blocks: np.ndarray, out: np.ndarray) -> None:
    _write_nibbles(blocks[:, 8:], out)
    out += _fifth_bits(blocks[:, 4:8])
    out *= halves(blocks, 0)
    out += halves(blocks, 2)


def _q8_0(blocks: np.ndarray, out: np.ndarray) -> None:
    out[...] = blocks[:, 2:].view(np.int8)
    out *= halves(blocks, 0)


FORMATS = (
    BlockFormat(number=2, name="Q4_0", elements=32, nbytes=18, decode=_q4_0),
    BlockFormat(number=3, name="Q4_1", elements=32, nbytes=20, decode=_q4_1),
    BlockFormat(number=6, name="Q5_0", elements=32, nbytes=22, decode=_q5_0),
    BlockFormat(number=7, name="Q5_1", elements=32, nbytes=24, decode=_q5_1),
    BlockFormat(number=8, name="Q8_0", elements=32, nbytes=34, decode=_q8_0),
    BlockFormat(number=41, name="Q1_0", elements=128, nbytes=18, decode=_q1_0),
)
