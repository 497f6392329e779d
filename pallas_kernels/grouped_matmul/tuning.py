"""The sizes of tiles: reasoned, not measured, but for those of the CPU."""

import math
from dataclasses import dataclass
from typing import TypeVar

from pallas_kernels.grouped_matmul.problem import Problem


@dataclass(frozen=True, kw_only=True)
class XlaTiles:
    """A trip of the loop multiplies ``rows`` rows by ``columns`` columns of a matrix."""

    rows: int
    columns: int

    @staticmethod
    def heuristic(problem: Problem) -> "XlaTiles":
        """Strips of a matrix that stay in a CPU's cache when they are widened to float32."""
        columns = largest_divisor(problem.columns, 128, most=2**22 // (4 * problem.depth))
        return XlaTiles(rows=_rows_near_mean(problem, least=8, most=256), columns=columns)


Tiles = TypeVar("Tiles", XlaTiles, XlaTiles)


def tiles_for(problem: Problem, kind: type[Tiles]) -> Tiles:
    """The tiles of a kind that a problem is cut into."""
    return kind.heuristic(problem)


def largest_divisor(number: int, unit: int, *, most: int) -> int:
    """The largest divisor of ``number`` up to ``most`` that is a multiple of ``unit``.

    Where there is none: ``unit`` if it is a divisor, else ``number``.
    """
    if number % unit:
        return number
    parts = number // unit
    return unit * max(
        n for n in range(1, parts + 1) if parts % n == 0 and n <= max(most // unit, 1)
    )


def _rows_near_mean(problem: Problem, *, least: int, most: int) -> int:
    """The power of two that holds a group of mean size."""
    mean = -(-problem.num_rows // problem.num_groups)
    return min(max(2 ** math.ceil(math.log2(mean)), least), most)
