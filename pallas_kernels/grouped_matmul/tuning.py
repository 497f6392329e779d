"""The sizes of tiles. They are reasoned, not measured: kernels have run on no chip so far."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from pallas_kernels.grouped_matmul.problem import Problem

VMEM_LIMIT = 48 * 2**20
"""What the TPU kernel may take: three quarters of the smallest VMEM among the chips it is for."""
VMEM_TILES = 36 * 2**20
"""What its tiles may take of that; the rest is for what the compiler keeps there."""

SHARED_BYTES = 224 * 1024
"""Shared memory of one block of a Hopper GPU, without 3 KiB for barriers."""


@dataclass(frozen=True, kw_only=True)
class XlaTiles:
    """A trip of the loop multiplies ``rows`` rows by ``columns`` columns of a matrix."""

    rows: int
    columns: int

    @staticmethod
    def heuristic(problem: Problem) -> "XlaTiles":
        """Strips of a matrix that stay in a CPU's cache when they are widened to float32, and rows
        that nearly all groups of random sizes fit into: a second visit reads the strip again."""
        mean = problem.num_rows / problem.num_groups
        rows = 8 * math.ceil((mean + 2 * math.sqrt(mean)) / 8)
        columns = _divisors(problem.columns, most=2**23 // (4 * problem.depth))
        return XlaTiles(rows=min(rows, 256), columns=max(columns))


@dataclass(frozen=True, kw_only=True)
class TpuTiles:
    """A step of the grid multiplies ``[rows, depth]`` by ``[depth, columns]``."""

    rows: int
    depth: int
    columns: int

    @staticmethod
    def heuristic(problem: Problem) -> "TpuTiles":
        """The tiles with the shortest time, by a count of their work."""
        return min(TpuTiles.candidates(problem), key=lambda tiles: tiles.seconds(problem))

    @staticmethod
    def candidates(problem: Problem) -> Iterator["TpuTiles"]:
        """Those that fit into VMEM."""
        # Registers hold 8 rows of 32 bits, or 16 of 16 bits, x and result alike.
        least = 32 // min(problem.x_dtype.itemsize, problem.out_dtype.itemsize)
        rows = [least << n for n in range(7) if least << n <= 512]
        rows = [n for n in rows if n < problem.num_rows + least]
        for n, depth, columns in itertools.product(
            rows, _divisors(problem.depth), _divisors(problem.columns)
        ):
            tiles = TpuTiles(rows=n, depth=depth, columns=columns)
            if tiles.vmem(problem) <= VMEM_TILES:
                yield tiles

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


@dataclass(frozen=True, kw_only=True)
class GpuTiles:
    """A unit of work multiplies ``rows`` rows by ``columns`` columns, 64 of the depth at a time."""

    rows: int
    columns: int

    @staticmethod
    def heuristic(problem: Problem) -> "GpuTiles":
        """64 rows where weights take longer to read than to multiply, else twice as many."""
        rows = 64 if problem.num_rows <= 64 * problem.num_groups else 128
        is_wide = rows == 128 and problem.columns % 256 == 0
        return GpuTiles(rows=rows, columns=256 if is_wide else 128)

    def stages(self, problem: Problem) -> int:
        """Steps in flight: as many as fit into shared memory beside the result."""
        # Three chunks of 64 columns of the result are on their way.
        out = 3 * self.rows * 64 * problem.out_dtype.itemsize
        step = 64 * (self.rows + self.columns) * problem.x_dtype.itemsize
        return max(min((SHARED_BYTES - out) // step, 6), 2)


Tiles = TypeVar("Tiles", XlaTiles, TpuTiles, GpuTiles)


def tiles_for(problem: Problem, kind: type[Tiles]) -> Tiles:
    """The tiles of a kind that a problem is cut into."""
    return kind.heuristic(problem)


def _divisors(number: int, *, most: int | None = None) -> list[int]:
    """Divisors of ``number`` that are multiples of 128 and at most ``most``, but never none: the
    least, or ``number`` itself if it is no multiple of 128."""
    if number % 128:
        return [number]
    divisors = [n for n in range(128, number + 1, 128) if number % n == 0]
    return [n for n in divisors if most is None or n <= max(most, 128)]
