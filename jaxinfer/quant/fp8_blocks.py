"""Matrices of eight-bit floats (E4M3) under a factor for each block of 128 by 128.

DeepSeek-V3 (arXiv 2412.19437, section 3.3): a weight is its number times the factor of its block.
Blocks at the end of a row or column are as small as what is left of it.
"""

from functools import cache

import ml_dtypes
import numpy as np

from jaxinfer.shapes import Shape

#: Rows and columns of a block.
BLOCK = 128
#: Rows decoded at once: what they need stays inside the second-level cache.
_CHUNK_ROWS = 8


def num_blocks(shape: Shape) -> Shape:
    """The shape of the factors that belong to a matrix."""
    return tuple(-(-size // BLOCK) for size in shape)


def decode(numbers: np.ndarray, factors: np.ndarray, skip: tuple[int, int] = (0, 0)) -> np.ndarray:
    """The matrix in float32, of which every product is rounded once.

    Args:
        numbers: ``[rows, columns]`` float8_e4m3fn, contiguous.
        factors: float32, one for each block that ``numbers`` reach into.
        skip: how many rows and columns of its first block come before ``numbers``, each below 128.
    """
    num_rows, num_columns = numbers.shape
    codes, out = numbers.view(np.uint8), np.empty(numbers.shape, np.float32)
    column_block = (np.arange(num_columns) + skip[1]) // BLOCK
    for row_block, factors_of_row in enumerate(factors):
        begin, end = (max(nth * BLOCK - skip[0], 0) for nth in (row_block, row_block + 1))
        factor_of_column = factors_of_row[column_block]
        for start in range(begin, min(end, num_rows), _CHUNK_ROWS):
            rows = slice(start, min(start + _CHUNK_ROWS, end))
            np.take(_table(), codes[rows], out=out[rows], mode="clip")
            out[rows] *= factor_of_column
    return out


@cache
def _table() -> np.ndarray:
    """The number of every byte: float32 ``[256]``."""
    return np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
