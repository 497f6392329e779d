"""Shared memory of a Hopper GPU, laid out for the tensor cores."""

import math
from typing import Any

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp


def swizzled(
    shape: tuple[int, ...], dtype: jax.typing.DTypeLike, tile_columns: int | None = None
) -> Any:
    """Shared memory in the order that WGMMA reads, spread over all banks.

    Rows lie in tiles of 8, which are as wide as divides the columns, up to ``tile_columns`` or 128
    bytes.
    """
    itemsize = jnp.dtype(dtype).itemsize
    swizzle = math.gcd(shape[-1] * itemsize, (tile_columns or 128) * itemsize, 128)
    if swizzle < 32:  # Rows of 80 bytes touch all banks as they are.
        return plgpu.SMEM(shape, dtype)
    tiling = plgpu.TilingTransform((8, swizzle // itemsize))
    return plgpu.SMEM(shape, dtype, transforms=(tiling, plgpu.SwizzleTransform(swizzle)))
