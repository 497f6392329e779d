"""Words of 32 bits in a TPU's registers, and choosing among the positions that share them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.paging.tpu_registers import packing_of


def words_where(
    is_chosen: Callable[[jax.Array], jax.Array],
    num_rows: int,
    width: int,
    dtype: jax.typing.DTypeLike,
) -> jax.Array:
    """Masks of bits for ``num_rows`` positions as words of 32 bits, which they share when narrow.

    Choosing among bits works for all dtypes alike, and leaves what is not chosen as it was, be it
    NaN.
    """
    packing = packing_of(dtype)
    bits = 32 // packing
    words = (num_rows // packing, width)
    word = jax.lax.broadcasted_iota(jnp.int32, words, 0)
    mask = jnp.zeros(words, jnp.int32)
    for i in range(packing):
        element = np.array(((1 << bits) - 1) << (bits * i), np.uint32).astype(np.int32)
        mask |= jnp.where(is_chosen(word * packing + i), jnp.int32(element), jnp.int32(0))
    return mask


def put_where(mask: jax.Array, ref: Any, new: jax.Array | None) -> None:
    """Replaces the masked bits of a matrix of positions by those of ``new``, or by zeros."""
    kept = pltpu.bitcast(ref[...], jnp.int32) & ~mask
    if new is not None:
        kept |= pltpu.bitcast(new, jnp.int32) & mask
    ref[...] = pltpu.bitcast(kept, ref.dtype)
