"""The sizes of tiles of the TPU kernel, and who chooses. They are reasoned, not measured, where
``tile_table`` knows none: the kernel has run on no chip so far."""

import itertools
from dataclasses import dataclass

from pallas_kernels import tile_table
from pallas_kernels.grouped_matmul.problem import Problem, divisors

VMEM_LIMIT = 48 * 2**20
"""What the kernel may take: three quarters of the smallest VMEM among the chips it is for."""
VMEM_TILES = 36 * 2**20
"""What its tiles may take of that; the rest is for what the compiler keeps there."""


@dataclass(frozen=True, kw_only=True)
class TpuTiles:
    """A step of the grid multiplies ``[rows, depth]`` by ``[depth, columns]``."""

    rows: int
    depth: int
    columns: int

    @staticmethod
    def heuristic(problem: Problem) -> "TpuTiles":
        """The tiles with the shortest time, by a count of their work."""
        return TpuTiles.candidates(problem)[0]

    @staticmethod
    def candidates(problem: Problem) -> list["TpuTiles"]:
        """Those that fit into VMEM, the shortest time first."""
        # Registers hold 8 rows of 32 bits, or 16 of 16 bits, x and result alike.
        least = 32 // min(problem.x_dtype.itemsize, problem.out_dtype.itemsize)
        rows = [least << n for n in range(7) if least << n <= 512]
        rows = [n for n in rows if n < problem.num_rows + least]
        sizes = itertools.product(rows, divisors(problem.depth), divisors(problem.columns))
        every = [TpuTiles(rows=n, depth=depth, columns=columns) for n, depth, columns in sizes]
        fitting = [tiles for tiles in every if tiles.vmem(problem) <= VMEM_TILES]
        return sorted(fitting, key=lambda tiles: tiles.seconds(problem))

    def vmem(self, problem: Problem) -> int:
        """Bytes: two buffers for all that is copied, sums, one product, converted weights."""
        x = self.rows * self.depth * problem.x_dtype.itemsize
        w = self.depth * self.columns * problem.w_dtype.itemsize
        out = self.rows * self.columns * problem.out_dtype.itemsize
        sums = self.rows * self.columns * 4
        converted = self.depth * self.columns * problem.x_dtype.itemsize * problem.is_scaled
        return 2 * (x + w + out) + 2 * sums + converted

    def _visits(self, problem: Problem) -> int:
        """Tiles, and one more for each border between groups."""
        groups = min(problem.num_groups, problem.num_rows)
        return -(-problem.num_rows // self.rows) + groups - 1

    def traffic(self, problem: Problem) -> int:
        """Bytes read and written if all groups have rows."""
        num_strips = problem.columns // self.columns
        visits, row_tiles = self._visits(problem), -(-problem.num_rows // self.rows)
        groups = min(problem.num_groups, problem.num_rows)
        # What has the same place as in the step before is not read again.
        is_whole = self.depth == problem.depth
        x = self.rows * problem.depth * problem.x_dtype.itemsize * num_strips
        w = problem.depth * problem.columns * problem.w_dtype.itemsize
        out = problem.num_rows * problem.columns * problem.out_dtype.itemsize
        return x * (row_tiles if is_whole else visits) + w * (groups if is_whole else visits) + out

    def seconds(self, problem: Problem) -> float:
        """An estimate: 166 bfloat16 FLOPs a byte, the least of v5e, v5p, v6e and tpu7x.

        The matrix unit takes as long to load weights as to multiply 128 rows; a product of float32
        takes six passes; the first copy is not hidden, and neither is what a step costs.
        """
        visits = self._visits(problem)
        passes = 6 if problem.x_dtype.itemsize == 4 else 1
        flops = 2 * visits * max(self.rows, 128) * problem.depth * problem.columns * passes
        steps = visits * (problem.columns // self.columns) * (problem.depth // self.depth)
        first = self.vmem(problem) / 2 / 1.6e12
        return max(flops / 2.7e14, self.traffic(problem) / 1.6e12) + first + steps * 4e-7


def tpu_tiles_for(problem: Problem) -> TpuTiles:
    """The tiles that a problem is cut into: of the table for the chip of ``dispatch.chip()``, or
    else of the heuristic."""
    return tile_table.tiles_for(
        "grouped_matmul", "tpu", problem, lambda: TpuTiles.heuristic(problem)
    )
