"""The static shape of a launch of the Hopper kernel, and what shared memory holds for it."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np

from pallas_kernels.gpu_chips import NUM_SMS, SHARED_BYTES
from pallas_kernels.paging import gpu_units
from pallas_kernels.powers import power_of_two_to
from pallas_kernels.ragged_paged_attention.gpu_tuning import GpuProblem, GpuTiles, gpu_tiles

WARPGROUP_ROWS = 64
"""Rows of a tile that a warpgroup computes: the least that WGMMA takes."""

INTERPRETED_SMS = 2
"""Blocks of the grid in the interpreter, which compiles the kernel for each of them."""

OTHER_BYTES = 3 * 1024
"""Shared memory for barriers and for sums over warps."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The static shape of a launch.

    ``tile_queries`` (a power of two) query tokens times G heads are the rows of a tile, head by
    head; ``tile_rows`` is their number, rounded up to what a copy takes.
    """

    tiles: GpuTiles
    tile_queries: int
    tile_rows: int
    head_dim: int
    warpgroups: int
    stages: int
    pages_dtype: np.dtype
    out_dtype: np.dtype
    interpret: bool

    @property
    def num_blocks(self) -> int:
        return INTERPRETED_SMS if self.interpret else NUM_SMS

    @property
    def operands(self) -> "Operands":
        return operands_of(self.pages_dtype)

    def shared(self, shape: tuple[int, ...], dtype: Any, tile_columns: int | None = None) -> Any:
        """Shared memory in the order that WGMMA reads, spread over all banks.

        Rows lie in tiles of 8, which are as wide as divides the columns, up to ``tile_columns`` or
        128 bytes.
        """
        itemsize = jnp.dtype(dtype).itemsize
        swizzle = math.gcd(shape[-1] * itemsize, (tile_columns or 128) * itemsize, 128)
        if swizzle < 32:  # Rows of 80 bytes touch all banks as they are.
            return plgpu.SMEM(shape, dtype)
        tiling = plgpu.TilingTransform((8, swizzle // itemsize))
        return plgpu.SMEM(shape, dtype, transforms=(tiling, plgpu.SwizzleTransform(swizzle)))

    def in_tile_layout(self, x: jax.Array) -> jax.Array:
        return gpu_units.in_tile_layout(x, interpret=self.interpret)

    def in_stored_layout(self, x: jax.Array) -> jax.Array:
        """``x [block, columns]`` spread so that a thread has 32 bits of the pages in a row."""
        if self.interpret or self.pages_dtype.itemsize > 1:
            return self.in_tile_layout(x)
        return plgpu.layout_cast(x, plgpu.Layout.WGMMA_UPCAST_2X)


@dataclass(frozen=True, kw_only=True)
class Operands:
    """What the tensor cores multiply for pages of a dtype: ``parts`` arrays, whose sum is meant."""

    dtype: np.dtype
    parts: int
    is_converted: bool


def operands_of(pages_dtype: np.dtype) -> Operands:
    """Numbers of 16 bits as they are; of 8 bits as bfloat16, which holds them all; float32 as the
    sum of two bfloat16, the second of which is what the first has rounded away."""
    if pages_dtype.itemsize == 2:
        return Operands(dtype=pages_dtype, parts=1, is_converted=False)
    parts = 2 if pages_dtype == jnp.float32 else 1
    return Operands(dtype=jnp.dtype(jnp.bfloat16), parts=parts, is_converted=True)


def plan(
    group_size: int,
    head_dim: int,
    pages_dtype: np.dtype,
    *,
    max_queries: int,
    out_dtype: Any,
    interpret: bool = False,
) -> Plan:
    """The launch for tiles of at most ``max_queries`` tokens (1: decode) of ``group_size`` heads,
    64 at most."""
    tiles = gpu_tiles(GpuProblem(head_dim=head_dim, pages_dtype=pages_dtype.name))
    operands = operands_of(pages_dtype)
    fits_one = power_of_two_to(max_queries) * group_size <= WARPGROUP_ROWS
    warpgroups = 1 if fits_one else tiles.prefill_warpgroups
    rows = warpgroups * WARPGROUP_ROWS
    tile_queries = power_of_two_to(max(min(rows // group_size, max_queries), 1))
    out_dtype = jnp.dtype(out_dtype)
    matrix_bytes = operands.parts * operands.dtype.itemsize * head_dim
    per_tile = rows * (matrix_bytes + tiles.columns * out_dtype.itemsize + 4)
    if operands.is_converted:
        per_tile += warpgroups * tiles.block * matrix_bytes
    per_stage = tiles.block * head_dim * pages_dtype.itemsize
    free = SHARED_BYTES - per_tile - OTHER_BYTES
    return Plan(
        tiles=tiles,
        tile_queries=tile_queries,
        tile_rows=min(-(-tile_queries * group_size // 8) * 8, rows),
        head_dim=head_dim,
        warpgroups=warpgroups,
        stages=max(min(free // per_stage, tiles.max_stages), 1),
        pages_dtype=pages_dtype,
        out_dtype=out_dtype,
        interpret=interpret,
    )
