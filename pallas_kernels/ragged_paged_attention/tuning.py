"""Tile sizes worth measuring: what ``pallas_kernels.tune`` asks of an operation."""

from collections.abc import Iterable
from typing import Any

from pallas_kernels import dispatch
from pallas_kernels.ragged_paged_attention.gpu_tuning import gpu_candidates
from pallas_kernels.ragged_paged_attention.tpu_tuning import tpu_candidates


def candidates(implementation: str, problem: Any) -> Iterable[Any]:
    """For a problem that ``implementation`` asked tiles for, on the chip of ``dispatch.chip()``.

    The heuristic's choice comes first.
    """
    if implementation == "tpu":
        return tpu_candidates(dispatch.chip(), problem)
    return gpu_candidates(problem)
