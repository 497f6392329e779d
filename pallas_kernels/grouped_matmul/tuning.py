"""Tile sizes worth measuring: what ``pallas_kernels.tune`` asks of an operation."""

from collections.abc import Iterable
from typing import Any

from pallas_kernels.grouped_matmul.gpu_tuning import GpuTiles
from pallas_kernels.grouped_matmul.tpu_tuning import TpuTiles


def candidates(implementation: str, problem: Any) -> Iterable[Any]:
    """For a problem that ``implementation`` asked tiles for, on the chip of ``dispatch.chip()``.

    The heuristic's choice comes first.
    """
    if implementation == "tpu":
        return TpuTiles.candidates(problem)
    return GpuTiles.candidates(problem)
