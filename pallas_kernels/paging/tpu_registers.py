"""The vector registers of a TPU, and how many positions each holds.

A register is 8 rows of 128 lanes of 32 bits; of narrower numbers, several rows share each word.
"""

import jax
import jax.numpy as jnp

LANES = 128
SUBLANES = 8
"""Rows of 32 bits in a register; narrower dtypes pack several rows into each."""


def align(x: int, multiple: int) -> int:
    """The least multiple that is not below ``x``."""
    return -(-x // multiple) * multiple


def rows_of(dtype: jax.typing.DTypeLike) -> int:
    """Positions in one register, the least that can be copied on their own."""
    return SUBLANES * packing_of(dtype)


def packing_of(dtype: jax.typing.DTypeLike) -> int:
    """Positions that share a word of 32 bits."""
    return 4 // jnp.dtype(dtype).itemsize
