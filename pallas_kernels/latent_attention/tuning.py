"""Tile sizes worth measuring: what ``pallas_kernels.tune`` asks of an operation."""

from collections.abc import Iterable
from typing import Any

from pallas_kernels.latent_attention import gpu_tuning, tpu_tuning


def candidates(implementation: str, problem: Any) -> Iterable[Any]:
    """For a problem that ``implementation`` asked tiles for, on the chip of ``dispatch.chip()``.

    The heuristic's choice comes first.
    """
    if implementation == "tpu":
        return tpu_tuning.candidates(problem)
    return gpu_tuning.candidates(problem)
