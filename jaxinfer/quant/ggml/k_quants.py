"""K-quants: super-blocks of 256 whose sub-blocks, of 16 or 32, have small integer scales.

Value = d * scale * q, or d * scale * q - dmin * min in the forms that have minima.
"""

import numpy as np

from jaxinfer.quant.ggml.block_format import (
    BlockFormat,
    bit_planes,
    halves,
    nibbles,
)

_ELEMENTS = 256


def _scale_and_shift(
    out: np.ndarray, d: np.ndarray, scales: np.ndarray, dmin: np.ndarray, mins: np.ndarray
) -> None:
    """``out * d * scales - dmin * mins``, in place; one scale and one minimum a sub-block."""
    parts = out.reshape(len(out), scales.shape[1], -1)
    parts *= (d * scales.astype(np.float32))[:, :, None]
    parts -= (dmin * mins.astype(np.float32))[:, :, None]


def _six_bit_pairs(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eight scales and eight minima of six bits each, from twelve bytes ``[n, 12]``.

    Bytes 0-3 hold the first four scales, 4-7 the first four minima, 8-11 the low four bits of the
    other four of both; their upper two bits are the tops of bytes 0-7.
    """
    low_scales, low_mins, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    six, two = np.uint8(0x3F), np.uint8(0x30)
    scales = [low_scales & six, (rest & np.uint8(15)) | (low_scales >> np.uint8(2)) & two]
    mins = [low_mins & six, (rest >> np.uint8(4)) | (low_mins >> np.uint8(2)) & two]
    return np.concatenate(scales, axis=1), np.concatenate(mins, axis=1)


def _q2_k(blocks: np.ndarray, out: np.ndarray) -> None:
    scales, packed = blocks[:, :16], blocks[:, 16:80].reshape(-1, 2, 32)
    out.reshape(-1, 2, 4, 32)[...] = bit_planes(packed, 2)
    d, dmin = halves(blocks, 80), halves(blocks, 82)
    _scale_and_shift(out, d, scales & np.uint8(15), dmin, scales >> np.uint8(4))


def _q3_k(blocks: np.ndarray, out: np.ndarray) -> None:
    high_bits, packed = blocks[:, :32], blocks[:, 32:96].reshape(-1, 2, 32)
    low_scales = nibbles(blocks[:, 96:104]).reshape(-1, 16)
    high_scales = bit_planes(blocks[:, 104:108], 2).reshape(-1, 16)
    scales = (low_scales | high_scales << np.uint8(4)).astype(np.float32) - np.float32(32)
    out.reshape(-1, 2, 4, 32)[...] = bit_planes(packed, 2)
    # A cleared high bit means minus four.
    out.reshape(-1, 8, 32)[...] -= (bit_planes(high_bits, 1) ^ np.uint8(1)) * np.float32(4)
    parts = out.reshape(-1, 16, 16)
    parts *= (halves(blocks, 108) * scales)[:, :, None]


def _q4_k(blocks: np.ndarray, out: np.ndarray) -> None:
    scales, mins = _six_bit_pairs(blocks[:, 4:16])
    packed, parts = blocks[:, 16:].reshape(-1, 4, 32), out.reshape(-1, 4, 2, 32)
    parts[:, :, 0] = packed & np.uint8(15)
    parts[:, :, 1] = packed >> np.uint8(4)
    _scale_and_shift(out, halves(blocks, 0), scales, halves(blocks, 2), mins)


def _q5_k(blocks: np.ndarray, out: np.ndarray) -> None:
    scales, mins = _six_bit_pairs(blocks[:, 4:16])
    high = bit_planes(blocks[:, 16:48], 1) << np.uint8(4)
    low = nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    out.reshape(-1, 8, 32)[...] = low | high
    _scale_and_shift(out, halves(blocks, 0), scales, halves(blocks, 2), mins)


def _q6_k(blocks: np.ndarray, out: np.ndarray) -> None:
    low = nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    high = bit_planes(blocks[:, 128:192].reshape(-1, 2, 32), 2)
    out.reshape(-1, 2, 4, 32)[...] = low | high << np.uint8(4)
    out -= np.float32(32)
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32)
    parts = out.reshape(-1, 16, 16)
    parts *= (halves(blocks, 208) * scales)[:, :, None]


FORMATS = (
    BlockFormat(number=10, name="Q2_K", elements=_ELEMENTS, nbytes=84, decode=_q2_k),
    BlockFormat(number=11, name="Q3_K", elements=_ELEMENTS, nbytes=110, decode=_q3_k),
    BlockFormat(number=12, name="Q4_K", elements=_ELEMENTS, nbytes=144, decode=_q4_k),
    BlockFormat(number=13, name="Q5_K", elements=_ELEMENTS, nbytes=176, decode=_q5_k),
    BlockFormat(number=14, name="Q6_K", elements=_ELEMENTS, nbytes=210, decode=_q6_k),
)
