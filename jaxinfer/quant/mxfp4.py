"""MXFP4 as safetensors hold it: four-bit floats (E2M1) in groups of 32 under a power of two (E8M0).

OCP Microscaling specification 1.0. A group is 16 bytes, the first of each two numbers in the low
half of a byte, and a byte for the scale: its exponent plus 127. GGUF files order the halves
otherwise (``ggml/small.py``).
"""

from functools import cache

import ml_dtypes
import numpy as np

GROUP, GROUP_BYTES = 32, 16

_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
#: Groups decoded at once: what a chunk needs stays inside the second-level cache.
_CHUNK_GROUPS = 1 << 11


def decode(blocks: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """Decodes groups; bfloat16 holds every one of their numbers exactly.

    A scale of 255 is no number, as the specification has it.

    Args:
        blocks: ``[n, 16]`` uint8.
        scales: ``[n]`` uint8.
        out: ``[n, 32]`` bfloat16, contiguous; overwritten.
    """
    pairs = out.view(np.uint32)
    for start in range(0, len(blocks), _CHUNK_GROUPS):
        part = slice(start, start + _CHUNK_GROUPS)
        index = scales[part].astype(np.intp)[:, None] << 8 | blocks[part]
        np.take(_pairs(), index, out=pairs[part], mode="clip")


@cache
def _pairs() -> np.ndarray:
    """The two bfloat16 numbers, as they lie in memory, of every scale and byte: uint32 ``[2^16]``.

    A table of all products leaves nothing to compute: one look-up gives two numbers.
    """
    values = np.concatenate((_E2M1, -_E2M1))
    exponent = np.arange(256) - 127
    with np.errstate(over="ignore"):
        numbers = np.ldexp(values[None, :], exponent[:, None])
    numbers[255] = np.nan
    byte = np.arange(256)
    both = np.stack((numbers[:, byte & 15], numbers[:, byte >> 4]), axis=-1)
    return both.astype(ml_dtypes.bfloat16).view(np.uint32).reshape(-1)
