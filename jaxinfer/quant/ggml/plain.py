"""Formats without scales: the bytes are the numbers."""

import ml_dtypes
import numpy as np

from jaxinfer.quant.ggml.block_format import BlockFormat


def _copy(blocks: np.ndarray, out: np.ndarray) -> None:
    out.view(np.uint8)[...] = blocks


def _plain(number: int, name: str, dtype: type) -> BlockFormat:
    itemsize = np.dtype(dtype).itemsize
    return BlockFormat(
        number=number, name=name, elements=1, nbytes=itemsize, decode=_copy, dtype=np.dtype(dtype)
    )


FORMATS = (
    _plain(0, "F32", np.float32),
    _plain(1, "F16", np.float16),
    _plain(30, "BF16", ml_dtypes.bfloat16),
    _plain(28, "F64", np.float64),
    _plain(24, "I8", np.int8),
    _plain(25, "I16", np.int16),
    _plain(26, "I32", np.int32),
    _plain(27, "I64", np.int64),
)
