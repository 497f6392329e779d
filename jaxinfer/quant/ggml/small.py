"""Very small numbers: three values (TQ1_0, TQ2_0) and four-bit floats (MXFP4, NVFP4).

MXFP4 follows the OCP Microscaling specification 1.0: E2M1 elements under one power-of-two scale for
32. NVFP4 has E2M1 elements too, under one unsigned E4M3 scale for 16.
"""

import numpy as np

from jaxinfer.quant.ggml.block_format import BlockFormat, bit_planes, halves, nibbles

#: The sixteen E2M1 values, doubled to be integers; the scales below are halved in return.
_E2M1_DOUBLED = np.array(
    [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], dtype=np.float32
)


def _half_e4m3() -> np.ndarray:
    """Half of every unsigned E4M3 number (the sign bit is ignored); 0x7F, NaN there, means zero."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    subnormal = mantissa * 2.0**-9
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    values = np.where(exponent == 0, subnormal, normal) / 2
    values[0x7F] = 0
    return values.astype(np.float32)


_HALF_E8M0 = np.ldexp(np.float32(1), np.arange(256) - 128)
_HALF_E4M3 = _half_e4m3()


def _ternary_digits(packed: np.ndarray, count: int) -> np.ndarray:
    """``[n, b]`` bytes as ``[n, count * b]`` values -1, 0, 1.

    A byte is a binary fraction of 256; multiplied by a power of three it shows the next ternary
    digit as the integer part of three times what remains.
    """
    powers = np.array([1, 3, 9, 27, 81], dtype=np.uint8)[:count, None]
    fractions = packed[:, None, :] * powers  # modulo 256
    digits = (fractions.astype(np.uint16) * np.uint16(3)) >> np.uint16(8)
    return digits.reshape(len(packed), -1).astype(np.float32) - np.float32(1)


def _tq1_0(blocks: np.ndarray, out: np.ndarray) -> None:
    out[:, :160] = _ternary_digits(blocks[:, :32], 5)
    out[:, 160:240] = _ternary_digits(blocks[:, 32:48], 5)
    out[:, 240:] = _ternary_digits(blocks[:, 48:52], 4)
    out *= halves(blocks, 52)


def _tq2_0(blocks: np.ndarray, out: np.ndarray) -> None:
    out.reshape(-1, 2, 4, 32)[...] = bit_planes(blocks[:, :64].reshape(-1, 2, 32), 2)
    out -= np.float32(1)
    out *= halves(blocks, 64)


def _mxfp4(blocks: np.ndarray, out: np.ndarray) -> None:
    codes = nibbles(blocks[:, 1:]).reshape(-1, 32)
    np.multiply(_E2M1_DOUBLED[codes], _HALF_E8M0[blocks[:, :1]], out=out)


def _nvfp4(blocks: np.ndarray, out: np.ndarray) -> None:
    codes = nibbles(blocks[:, 4:].reshape(-1, 4, 8)).reshape(-1, 4, 16)
    scales = _HALF_E4M3[blocks[:, :4]]
    np.multiply(_E2M1_DOUBLED[codes], scales[:, :, None], out=out.reshape(-1, 4, 16))


FORMATS = (
    BlockFormat(number=34, name="TQ1_0", elements=256, nbytes=54, decode=_tq1_0),
    BlockFormat(number=35, name="TQ2_0", elements=256, nbytes=66, decode=_tq2_0),
    BlockFormat(number=39, name="MXFP4", elements=32, nbytes=17, decode=_mxfp4),
    BlockFormat(number=40, name="NVFP4", elements=64, nbytes=36, decode=_nvfp4),
)
