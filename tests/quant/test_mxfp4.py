"""MXFP4 as safetensors hold it: against transformers and the specification."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from jaxinfer.quant.mxfp4 import decode

GOLDEN = Path(__file__).parent.parent / "golden" / "quant" / "mxfp4.npz"


def decoded(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    out = np.empty((*scales.shape, 32), ml_dtypes.bfloat16)
    decode(blocks.reshape(-1, 16), scales.reshape(-1), out.reshape(-1, 32))
    return out


def slow_number(code: int, scale: int) -> float:
    """The specification read aloud: sign, two bits of exponent (bias 1), one of mantissa."""
    sign = -1.0 if code & 8 else 1.0
    exponent, mantissa = code >> 1 & 3, code & 1
    significand = mantissa / 2 if exponent == 0 else 1 + mantissa / 2
    return sign * significand * 2.0 ** max(exponent - 1, 0) * 2.0 ** (scale - 127)


def test_golden_blocks_decode_to_the_bits_of_transformers():
    with np.load(GOLDEN) as golden:
        blocks, scales, bits = golden["blocks"], golden["scales"], golden["decoded"]
    rows = decoded(blocks, scales).reshape(*scales.shape[:2], -1)
    np.testing.assert_array_equal(rows.swapaxes(1, 2).view(np.uint16), bits)


@pytest.mark.parametrize("scale", [0, 1, 100, 127, 128, 252])
def test_every_byte_is_two_numbers_the_low_half_first(scale):
    blocks = np.arange(256, dtype=np.uint8).reshape(16, 16)
    out = decoded(blocks, np.full(16, scale, np.uint8)).reshape(-1, 2)
    expected = [
        (slow_number(byte & 15, scale), slow_number(byte >> 4, scale)) for byte in range(256)
    ]
    np.testing.assert_array_equal(out.astype(np.float64), np.array(expected))


def test_a_group_has_a_scale_of_its_own():
    blocks = np.full((3, 16), 0x22, np.uint8)
    out = decoded(blocks, np.array([126, 127, 130], np.uint8))
    np.testing.assert_array_equal(out.astype(np.float32), np.tile([[0.5], [1.0], [8.0]], 32))


def test_the_scale_that_is_no_number_makes_none():
    out = decoded(np.full((1, 16), 0x22, np.uint8), np.array([255], np.uint8))
    assert np.isnan(out.astype(np.float32)).all()


def test_more_groups_than_a_chunk_decode_as_each_alone():
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 256, (5000, 16), dtype=np.uint8)
    scales = rng.integers(100, 150, 5000, dtype=np.uint8)
    together = decoded(blocks, scales).view(np.uint16)
    for start in (0, 2047, 2048, 4999):
        part = slice(start, start + 1)
        alone = decoded(blocks[part], scales[part]).view(np.uint16)
        np.testing.assert_array_equal(together[part], alone)
