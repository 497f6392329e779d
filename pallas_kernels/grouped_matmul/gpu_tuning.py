"""The sizes of tiles of the Hopper kernel, and who chooses. They are reasoned, not measured, where
``tile_table`` knows none: the kernel has run on no chip so far."""

import itertools
from dataclasses import dataclass

from pallas_kernels import tile_table
from pallas_kernels.dispatch import NoImplementation
from pallas_kernels.gpu_chips import SHARED_BYTES
from pallas_kernels.grouped_matmul.problem import Problem

OTHER_BYTES = 3 * 1024
"""Shared memory for barriers."""

LEAST_STAGES = 2
"""Steps in flight: one is multiplied while another is on its way."""


@dataclass(frozen=True, kw_only=True)
class GpuTiles:
    """A unit of work multiplies ``rows`` rows by ``columns`` columns, 64 of the depth at a time."""

    rows: int
    columns: int

    @staticmethod
    def heuristic(problem: Problem) -> "GpuTiles":
        """64 rows where weights take longer to read than to multiply, else twice as many."""
        rows = 64 if problem.num_rows <= 64 * problem.num_groups else 128
        widths = (256, 128, 192, 64) if rows == 128 else (128, 192, 64)
        return GpuTiles(rows=rows, columns=next(n for n in widths if problem.columns % n == 0))

    @staticmethod
    def candidates(problem: Problem) -> list["GpuTiles"]:
        """All that shared memory has room for, the heuristic's first."""
        guess = GpuTiles.heuristic(problem)
        every = [
            GpuTiles(rows=rows, columns=columns)
            for rows, columns in itertools.product((64, 128), (64, 128, 192, 256))
            if problem.columns % columns == 0
        ]
        fitting = [tiles for tiles in every if tiles.most_stages(problem) >= LEAST_STAGES]
        return sorted(fitting, key=lambda tiles: tiles != guess)

    def most_stages(self, problem: Problem) -> int:
        """Steps that fit into shared memory beside the result."""
        once, step = self._bytes(problem)
        return (SHARED_BYTES - once) // step

    def stages(self, problem: Problem) -> int:
        """Steps in flight: as many as fit, and no more than hide the latency of memory.

        Raises ``NoImplementation`` where ``LEAST_STAGES`` do not fit.
        """
        most = self.most_stages(problem)
        if most < LEAST_STAGES:
            once, step = self._bytes(problem)
            raise NoImplementation(
                f"grouped_matmul as gpu takes {once + LEAST_STAGES * step} bytes of shared memory"
                f" for {LEAST_STAGES} steps of {self}, above {SHARED_BYTES}: measure other tiles"
            )
        return min(most, 6)

    def _bytes(self, problem: Problem) -> tuple[int, int]:
        """Shared memory that is there once, and of a step."""
        # Three chunks of 64 columns of the result are on their way.
        out = 3 * self.rows * 64 * problem.out_dtype.itemsize
        return OTHER_BYTES + out, 64 * (self.rows + self.columns) * problem.x_dtype.itemsize


def gpu_tiles_for(problem: Problem) -> GpuTiles:
    """The tiles that a problem is cut into: of the table for the chip of ``dispatch.chip()``, or
    else of the heuristic."""
    return tile_table.tiles_for(
        "grouped_matmul", "gpu", problem, lambda: GpuTiles.heuristic(problem)
    )
