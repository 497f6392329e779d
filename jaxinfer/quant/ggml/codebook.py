"""Codebook formats (IQ): indices into a table of points, with signs and scales beside them.

Value = d * scale * point * sign, for sub-blocks of 16 or 32 elements. A point has 8 or 4
coordinates; the tables are in `grids`. IQ1 points are ternary and shifted by an eighth; IQ4 has 16
points of one coordinate.
"""

from functools import cache

import numpy as np

from jaxinfer.quant.ggml import grids
from jaxinfer.quant.ggml.block_format import (
    BlockFormat,
    halves,
    interleaved_nibbles,
    nibbles,
    words,
)

_ELEMENTS = 256
_IQ1_SHIFT = np.float32(0.125)
_IQ4_POINTS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32
)


@cache
def _signs() -> np.ndarray:
    """``[256, 8]``: -1 where a bit of the byte is set, else 1."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.float32(1) - np.float32(2) * bits


@cache
def _even_signs() -> np.ndarray:
    """``[128, 8]``: seven stored signs and an eighth that makes their number of minuses even."""
    code = np.arange(128, dtype=np.uint8)
    parity = np.bitwise_count(code) & np.uint8(1)
    return _signs()[code | parity << np.uint8(7)]


def _fields(packed: np.ndarray, shifts: tuple[int, ...], bits: int) -> np.ndarray:
    """``[..., w]`` integers as ``[..., w, len(shifts)]`` fields of ``bits`` bits."""
    dtype = packed.dtype
    mask = dtype.type((1 << bits) - 1)
    return packed[..., None] >> np.array(shifts, dtype=dtype) & mask


def _points_times_scales(
    out: np.ndarray, points: np.ndarray, signs: np.ndarray, scales: np.ndarray
) -> None:
    """Writes point * sign * scale; one scale ``[n, s]`` for every ``256 / s`` elements."""
    parts = out.reshape(len(out), scales.shape[1], -1)
    np.multiply(points.reshape(parts.shape), scales[:, :, None], out=parts)
    parts *= signs.reshape(parts.shape)


def _iq2_xxs(blocks: np.ndarray, out: np.ndarray) -> None:
    pairs = words(blocks, 2, 66, np.uint32).reshape(-1, 8, 2)
    indices = blocks[:, 2:66].reshape(-1, 8, 8)[:, :, :4]
    signs_and_scale = pairs[:, :, 1]
    scale = (signs_and_scale >> np.uint32(28)).astype(np.float32)
    scales = halves(blocks, 0) * (np.float32(0.5) + scale) * np.float32(0.25)
    signs = _even_signs()[_fields(signs_and_scale, (0, 7, 14, 21), 7)]
    _points_times_scales(out, grids.iq2_xxs()[indices], signs, scales)


def _iq2_xs(blocks: np.ndarray, out: np.ndarray) -> None:
    codes = words(blocks, 2, 66, np.uint16)
    scale = interleaved_nibbles(blocks[:, 66:74]).astype(np.float32)
    scales = halves(blocks, 0) * (np.float32(0.5) + scale) * np.float32(0.25)
    points = grids.iq2_xs()[codes & np.uint16(511)]
    _points_times_scales(out, points, _even_signs()[codes >> np.uint16(9)], scales)


def _iq2_s(blocks: np.ndarray, out: np.ndarray) -> None:
    high = _fields(blocks[:, 66:74], (0, 2, 4, 6), 2).reshape(-1, 32).astype(np.uint16)
    scale = interleaved_nibbles(blocks[:, 74:82]).astype(np.float32)
    scales = halves(blocks, 0) * (np.float32(0.5) + scale) * np.float32(0.25)
    points = grids.iq2_s()[blocks[:, 2:34] | high << np.uint16(8)]
    _points_times_scales(out, points, _signs()[blocks[:, 34:66]], scales)


def _iq3_xxs(blocks: np.ndarray, out: np.ndarray) -> None:
    signs_and_scale = words(blocks, 66, 98, np.uint32)
    scale = (signs_and_scale >> np.uint32(28)).astype(np.float32)
    scales = halves(blocks, 0) * (np.float32(0.5) + scale) * np.float32(0.5)
    signs = _even_signs()[_fields(signs_and_scale, (0, 7, 14, 21), 7)]
    _points_times_scales(out, grids.iq3_xxs()[blocks[:, 2:66]], signs, scales)


def _iq3_s(blocks: np.ndarray, out: np.ndarray) -> None:
    high = np.unpackbits(blocks[:, 66:74], axis=1, bitorder="little").astype(np.uint16)
    scale = interleaved_nibbles(blocks[:, 106:110]).astype(np.float32)
    scales = halves(blocks, 0) * (np.float32(1) + np.float32(2) * scale)
    points = grids.iq3_s()[blocks[:, 2:66] | high << np.uint16(8)]
    _points_times_scales(out, points, _signs()[blocks[:, 74:106]], scales)


def _iq1_s(blocks: np.ndarray, out: np.ndarray) -> None:
    high = words(blocks, 34, 50, np.uint16)
    scale = (high >> np.uint16(12) & np.uint16(7)).astype(np.float32)
    scales = halves(blocks, 0) * (np.float32(2) * scale + np.float32(1))
    shift = np.where(high & np.uint16(0x8000), -_IQ1_SHIFT, _IQ1_SHIFT)
    index = blocks[:, 2:34] | _fields(high, (0, 3, 6, 9), 3).reshape(-1, 32) << np.uint16(8)
    parts = out.reshape(-1, 8, 32)
    np.add(grids.iq1_s()[index].reshape(parts.shape), shift[:, :, None], out=parts)
    parts *= scales[:, :, None]


def _iq1_m(blocks: np.ndarray, out: np.ndarray) -> None:
    packed = words(blocks, 48, 56, np.uint16)
    # The float16 scale of the block is spread over the top nibbles of the four scale words.
    nibble_of_d = (packed >> np.uint16(12)) << np.array([0, 4, 8, 12], dtype=np.uint16)
    d = np.bitwise_or.reduce(nibble_of_d, axis=1).view(np.float16).astype(np.float32)[:, None]
    scale = _fields(packed, (0, 3, 6, 9), 3).reshape(-1, 16).astype(np.float32)
    scales = d * (np.float32(2) * scale + np.float32(1))
    high = interleaved_nibbles(blocks[:, 32:48])
    shift = np.where(high & np.uint8(8), -_IQ1_SHIFT, _IQ1_SHIFT)
    index = blocks[:, :32] | (high & np.uint8(7)).astype(np.uint16) << np.uint16(8)
    points = out.reshape(-1, 32, 8)
    np.add(grids.iq1_s()[index], shift[:, :, None], out=points)
    parts = out.reshape(-1, 16, 16)
    parts *= scales[:, :, None]


def _iq4_nl(blocks: np.ndarray, out: np.ndarray) -> None:
    codes = nibbles(blocks[:, 2:]).reshape(-1, 32)
    np.multiply(_IQ4_POINTS[codes], halves(blocks, 0), out=out)


def _iq4_xs(blocks: np.ndarray, out: np.ndarray) -> None:
    high = _fields(words(blocks, 2, 4, np.uint16), tuple(range(0, 16, 2)), 2).reshape(-1, 8)
    scale = interleaved_nibbles(blocks[:, 4:8]) | high << np.uint16(4)
    scales = halves(blocks, 0) * (scale.astype(np.float32) - np.float32(32))
    codes = nibbles(blocks[:, 8:].reshape(-1, 8, 16)).reshape(-1, 8, 32)
    np.multiply(_IQ4_POINTS[codes], scales[:, :, None], out=out.reshape(-1, 8, 32))


FORMATS = (
    BlockFormat(number=16, name="IQ2_XXS", elements=_ELEMENTS, nbytes=66, decode=_iq2_xxs),
    BlockFormat(number=17, name="IQ2_XS", elements=_ELEMENTS, nbytes=74, decode=_iq2_xs),
    BlockFormat(number=22, name="IQ2_S", elements=_ELEMENTS, nbytes=82, decode=_iq2_s),
    BlockFormat(number=18, name="IQ3_XXS", elements=_ELEMENTS, nbytes=98, decode=_iq3_xxs),
    BlockFormat(number=21, name="IQ3_S", elements=_ELEMENTS, nbytes=110, decode=_iq3_s),
    BlockFormat(number=19, name="IQ1_S", elements=_ELEMENTS, nbytes=50, decode=_iq1_s),
    BlockFormat(number=29, name="IQ1_M", elements=_ELEMENTS, nbytes=56, decode=_iq1_m),
    BlockFormat(number=20, name="IQ4_NL", elements=32, nbytes=18, decode=_iq4_nl),
    BlockFormat(number=23, name="IQ4_XS", elements=_ELEMENTS, nbytes=136, decode=_iq4_xs),
)
