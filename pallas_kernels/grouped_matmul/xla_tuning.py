"""The sizes of tiles of plain XLA, found by measuring on a CPU; see the README."""

import math
from dataclasses import dataclass

from pallas_kernels import tile_table
from pallas_kernels.grouped_matmul.problem import Problem, divisors


@dataclass(frozen=True, kw_only=True)
class XlaTiles:
    """A trip of the loop multiplies ``[rows, depth]`` by ``depth`` rows of a matrix."""

    rows: int
    depth: int

    @staticmethod
    def heuristic(problem: Problem) -> "XlaTiles":
        """Two megabytes of a matrix, widened to float32, stay in a CPU's cache; and nearly all
        groups of random sizes fit into the rows: a second visit reads the matrix again."""
        mean = problem.num_rows / problem.num_groups
        rows = 8 * math.ceil((mean + 2 * math.sqrt(mean)) / 8)
        depths = divisors(problem.depth, most=2**21 // (4 * problem.columns))
        return XlaTiles(rows=min(rows, 256), depth=max(depths))


def xla_tiles_for(problem: Problem) -> XlaTiles:
    """The tiles that a problem is cut into: of the table for the chip of ``dispatch.chip()``, or
    else of the heuristic."""
    return tile_table.tiles_for(
        "grouped_matmul", "xla", problem, lambda: XlaTiles.heuristic(problem)
    )
