"""The static shape of a launch of the Hopper kernel, and its layouts."""

from dataclasses import dataclass

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np

from pallas_kernels.dispatch import NoImplementation
from pallas_kernels.gpu_chips import NUM_SMS, SHARED_BYTES
from pallas_kernels.paging import gpu_units
from pallas_kernels.powers import power_of_two_to
from pallas_kernels.ragged_paged_attention.gpu_tiles import (
    WARPGROUP_ROWS,
    GpuProblem,
    GpuTiles,
    Operands,
    operands_of,
)
from pallas_kernels.ragged_paged_attention.gpu_tuning import gpu_tiles_for

INTERPRETED_SMS = 2
"""Blocks of the grid in the interpreter, which compiles the kernel for each of them."""


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
    def operands(self) -> Operands:
        return operands_of(self.pages_dtype)

    def in_tile_layout(self, x: jax.Array) -> jax.Array:
        return gpu_units.in_tile_layout(x, interpret=self.interpret)

    def in_stored_layout(self, x: jax.Array) -> jax.Array:
        """``x [block, columns]`` spread so that a thread has 32 bits of the pages in a row."""
        if self.interpret or self.pages_dtype.itemsize > 1:
            return self.in_tile_layout(x)
        return plgpu.layout_cast(x, plgpu.Layout.WGMMA_UPCAST_2X)


def plan(problem: GpuProblem, *, interpret: bool = False) -> Plan:
    """The launch for a problem, with the tiles of the table or of the heuristic.

    Raises ``NoImplementation`` where these do not fit into shared memory.
    """
    tiles = gpu_tiles_for(problem)
    stages = tiles.stages(problem)
    if stages < 1:
        raise NoImplementation(
            f"ragged_paged_attention as gpu takes {tiles.least_bytes(problem)} bytes of shared"
            f" memory for a tile of {tiles}, above {SHARED_BYTES}: measure other tiles"
        )
    rows = tiles.warpgroups(problem) * WARPGROUP_ROWS
    tile_queries = power_of_two_to(max(min(rows // problem.group_size, problem.max_queries), 1))
    return Plan(
        tiles=tiles,
        tile_queries=tile_queries,
        tile_rows=min(-(-tile_queries * problem.group_size // 8) * 8, rows),
        head_dim=problem.head_dim,
        warpgroups=tiles.warpgroups(problem),
        stages=stages,
        pages_dtype=jnp.dtype(problem.pages_dtype),
        out_dtype=jnp.dtype(problem.out_dtype),
        interpret=interpret,
    )
