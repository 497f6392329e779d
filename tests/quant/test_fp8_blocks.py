"""Blocks of FP8 against the format read aloud, number by number."""

import ml_dtypes
import numpy as np
import pytest

from jaxinfer.quant.fp8_blocks import decode, num_blocks


def packed(shape: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random numbers, none of them NaN, and a factor for each block."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, shape, dtype=np.uint8)
    codes[codes & 0x7F == 0x7F] = 0
    factors = rng.uniform(1e-4, 1e-2, num_blocks(shape)).astype(np.float32)
    return codes.view(ml_dtypes.float8_e4m3fn), factors


def plain(numbers: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """The whole matrix with the factor of each of its numbers beside it."""
    rows, columns = numbers.shape
    of_each = factors.repeat(128, axis=0)[:rows].repeat(128, axis=1)[:, :columns]
    return numbers.astype(np.float32) * of_each


def slow_number(code: int) -> float:
    """OFP8 E4M3: sign, four bits of exponent (bias 7), three of mantissa; no infinities."""
    sign, exponent, mantissa = -1.0 if code & 128 else 1.0, code >> 3 & 15, code & 7
    if code & 0x7F == 0x7F:
        return np.nan
    return sign * (mantissa / 8 + (exponent > 0)) * 2.0 ** (max(exponent, 1) - 7)


def test_every_byte_is_its_number():
    codes = np.arange(256, dtype=np.uint8).reshape(16, 16)
    out = decode(codes.view(ml_dtypes.float8_e4m3fn), np.full((1, 1), 0.5, np.float32))
    expected = np.array([slow_number(code) / 2 for code in range(256)], np.float32)
    np.testing.assert_array_equal(out.reshape(-1), expected)


@pytest.mark.parametrize("shape", [(1, 1), (128, 128), (129, 5), (300, 257), (64, 384)])
def test_blocks_at_the_edges_are_as_small_as_what_is_left(shape):
    numbers, factors = packed(shape)
    out = decode(numbers, factors)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, plain(numbers, factors))


@pytest.mark.parametrize(
    ("rows", "columns"),
    [((0, 300), (0, 257)), ((5, 6), (0, 257)), ((130, 300), (127, 129)), ((256, 256), (0, 1))],
)
def test_a_part_begins_and_ends_anywhere(rows, columns):
    numbers, factors = packed((300, 257))
    part = tuple(slice(*pair) for pair in (rows, columns))
    blocks = tuple(slice(start // 128, -(-stop // 128)) for start, stop in (rows, columns))
    skip = (rows[0] % 128, columns[0] % 128)
    out = decode(np.ascontiguousarray(numbers[part]), factors[blocks], skip)
    np.testing.assert_array_equal(out, plain(numbers, factors)[part])
