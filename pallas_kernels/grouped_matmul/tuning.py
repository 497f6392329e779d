"""The sizes of tiles. They are reasoned, not measured, where ``tile_table`` knows none: the kernels
have run on no chip so far."""

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar, TypeVar

from pallas_kernels import tile_table
from pallas_kernels.grouped_matmul.problem import Problem

VMEM_LIMIT = 48 * 2**20
"""What the TPU kernel may take: three quarters of the smallest VMEM among the chips it is for."""
VMEM_TILES = 36 * 2**20
"""What its tiles may take of that; the rest is for what the compiler keeps there."""

SHARED_BYTES = 224 * 1024
"""Shared memory of one block of a Hopper GPU, without 3 KiB for barriers."""


@dataclass(frozen=True, kw_only=True)
class XlaTiles:
    """A trip of the loop multiplies ``[rows, depth]`` by ``depth`` rows of a matrix."""

    implementation: ClassVar[str] = "xla"
    rows: int
    depth: int

    @staticmethod
    def heuristic(problem: Problem) -> "XlaTiles":
        """Two megabytes of a matrix, widened to float32, stay in a CPU's cache; and nearly all
        groups of random sizes fit into the rows: a second visit reads the matrix again."""
        mean = problem.num_rows / problem.num_groups
        rows = 8 * math.ceil((mean + 2 * math.sqrt(mean)) / 8)
        depths = _divisors(problem.depth, most=2**21 // (4 * problem.columns))
        return XlaTiles(rows=min(rows, 256), depth=max(depths))


@dataclass(frozen=True, kw_only=True)
class TpuTiles:
    """A step of the grid multiplies ``[rows, depth]`` by ``[depth, columns]``."""

    implementation: ClassVar[str] = "tpu"
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
        sizes = itertools.product(rows, _divisors(problem.depth), _divisors(problem.columns))
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


@dataclass(frozen=True, kw_only=True)
class GpuTiles:
    """A unit of work multiplies ``rows`` rows by ``columns`` columns, 64 of the depth at a time."""

    implementation: ClassVar[str] = "gpu"
    rows: int
    columns: int

    @staticmethod
    def heuristic(problem: Problem) -> "GpuTiles":
        """64 rows where weights take longer to read than to multiply, else twice as many."""
        rows = 64 if problem.num_rows <= 64 * problem.num_groups else 128
        is_wide = rows == 128 and problem.columns % 256 == 0
        return GpuTiles(rows=rows, columns=256 if is_wide else 128)

    @staticmethod
    def candidates(problem: Problem) -> list["GpuTiles"]:
        """All that there are, the heuristic's first."""
        guess = GpuTiles.heuristic(problem)
        every = [
            GpuTiles(rows=rows, columns=columns)
            for rows, columns in itertools.product((64, 128), (128, 256))
            if problem.columns % columns == 0
        ]
        return sorted(every, key=lambda tiles: tiles != guess)

    def stages(self, problem: Problem) -> int:
        """Steps in flight: as many as fit into shared memory beside the result."""
        # Three chunks of 64 columns of the result are on their way.
        out = 3 * self.rows * 64 * problem.out_dtype.itemsize
        step = 64 * (self.rows + self.columns) * problem.x_dtype.itemsize
        return max(min((SHARED_BYTES - out) // step, 6), 2)


Tiles = TypeVar("Tiles", XlaTiles, TpuTiles, GpuTiles)


def tiles_for(problem: Problem, kind: type[Tiles]) -> Tiles:
    """The tiles of a kind that a problem is cut into, on the chip of ``dispatch.chip()``."""
    return tile_table.tiles_for(
        "grouped_matmul", kind.implementation, problem, lambda: kind.heuristic(problem)
    )


def candidates(implementation: str, problem: Problem) -> list[TpuTiles] | list[GpuTiles]:
    """What ``pallas_kernels.tune`` tries for ``tpu`` or ``gpu``, the best guess first."""
    kind: type[TpuTiles] | type[GpuTiles] = {"tpu": TpuTiles, "gpu": GpuTiles}[implementation]
    return kind.candidates(problem)


def _divisors(number: int, *, most: int | None = None) -> list[int]:
    """Divisors of ``number`` that are multiples of 128 and at most ``most``, but never none: the
    least, or ``number`` itself if it is no multiple of 128."""
    if number % 128:
        return [number]
    divisors = [n for n in range(128, number + 1, 128) if number % n == 0]
    return [n for n in divisors if most is None or n <= max(most, 128)]
