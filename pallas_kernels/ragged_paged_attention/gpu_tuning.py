"""Sizes that decide how fast the Hopper kernel is and never what it returns, and who chooses them.

They are reasoned from the sizes of memories and registers: no chip has measured them.
"""

import itertools
from collections.abc import Iterator
from dataclasses import replace

from pallas_kernels import tile_table
from pallas_kernels.ragged_paged_attention.gpu_tiles import GpuProblem, GpuTiles

__all__ = ["GpuProblem", "GpuTiles", "gpu_candidates", "gpu_heuristic", "gpu_tiles_for"]


def gpu_tiles_for(problem: GpuProblem) -> GpuTiles:
    """The sizes that the kernel is compiled with: of the table, or else of the heuristic."""
    return tile_table.tiles_for(
        "ragged_paged_attention", "gpu", problem, lambda: gpu_heuristic(problem)
    )


def gpu_heuristic(problem: GpuProblem) -> GpuTiles:
    """Reasoned from the sizes of registers and of shared memory, not measured."""
    is_wide = problem.head_dim > 128
    # The operands of float32 are two, of which one warpgroup holds what two have room for.
    is_alone = problem.pages_dtype == "float32" or problem.head_dim > 192
    return GpuTiles(
        columns=64 if is_wide else problem.head_dim, prefill_warpgroups=1 if is_alone else 2
    )


def gpu_candidates(problem: GpuProblem) -> Iterator[GpuTiles]:
    """Sizes worth measuring, the heuristic's first: all that shared memory has room for, in every
    direction that this launch has."""
    guess = gpu_heuristic(problem)
    yield guess
    warpgroups, min_splits, units = (
        [guess.prefill_warpgroups],
        [guess.min_split],
        [guess.wanted_units],
    )
    if problem.max_queries == 1:  # Only rows of one token are split.
        min_splits, units = [guess.min_split, 2, 8], [guess.wanted_units, 528]
    elif not problem.fits_one:
        warpgroups.append(3 - guess.prefill_warpgroups)
    for count, stages, min_split, wanted_units in itertools.product(
        warpgroups, (guess.max_stages, 8, 4, 2), min_splits, units
    ):
        tiles = replace(
            guess,
            prefill_warpgroups=count,
            max_stages=stages,
            min_split=min_split,
            wanted_units=wanted_units,
        )
        fitting = replace(tiles, max_stages=guess.max_stages).stages(problem)
        # As many stages as fit, or more, are the same kernel again.
        is_new = tiles != guess and (stages == guess.max_stages or stages < fitting)
        if is_new and fitting > 0:
            yield tiles
