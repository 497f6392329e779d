"""Sizes that decide how fast a kernel is and never what it returns, and the rules that choose them.

They are reasoned from the sizes of memories and registers: no chip has measured them.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pallas_kernels import tile_table


@dataclass(frozen=True, kw_only=True)
class GpuProblem:
    """What the sizes of the Hopper kernel depend on; ``pages_dtype`` by its name."""

    head_dim: int
    pages_dtype: str


@dataclass(frozen=True, kw_only=True)
class GpuTiles:
    """Sizes of the Hopper kernel. Raises ``ValueError`` for those it cannot have."""

    columns: int
    """Columns of the head dim that one accumulator of weighted values has."""

    prefill_warpgroups: int
    """Warpgroups that compute a tile of a prompt, 64 rows each: two leave a thread 168 registers,
    one leaves it 255."""

    block: int = 64
    """Positions that a step takes: one copy of keys, one of values. A page holds one or more, and
    the rows of its register layouts are 64."""

    max_stages: int = 12
    """Blocks of keys or of values in flight: enough to hide the latency of memory."""

    min_split: int = 4
    """Blocks that a part of a split row has at least."""

    splits: tuple[int, int] = (4, 32)
    """The least and the largest number of parts that a row may be split into."""

    wanted_units: int = 264
    """Units of work that keep all multiprocessors of an H100 or H200 busy: two for each of 132."""

    def __post_init__(self) -> None:
        for name, is_allowed, allowed in (
            ("block", self.block == 64, "64"),
            (
                "columns",
                self.columns % 16 == 0 and 0 < self.columns <= 128,
                "a multiple of 16 up to 128",
            ),
            ("prefill_warpgroups", self.prefill_warpgroups in (1, 2), "1 or 2"),
            ("max_stages", self.max_stages > 0, "1 or more"),
            ("min_split", self.min_split > 0, "1 or more"),
            ("wanted_units", self.wanted_units > 0, "1 or more"),
            ("splits", 0 < self.splits[0] <= self.splits[1], "two rising numbers above 0"),
        ):
            if not is_allowed:
                raise ValueError(f"{name} = {getattr(self, name)} is not {allowed}")


def gpu_heuristic(problem: GpuProblem) -> GpuTiles:
    """Reasoned from the sizes of registers and of shared memory, not measured."""
    is_wide = problem.head_dim > 128
    # The operands of float32 are two, of which one warpgroup holds what two have room for.
    is_alone = problem.pages_dtype == "float32" or problem.head_dim > 192
    return GpuTiles(
        columns=64 if is_wide else problem.head_dim, prefill_warpgroups=1 if is_alone else 2
    )


def gpu_tiles(problem: GpuProblem) -> GpuTiles:
    """The sizes that the Hopper kernel is compiled with: of the table, or else of the heuristic."""
    return tile_table.tiles_for(
        "ragged_paged_attention", "gpu", problem, lambda: gpu_heuristic(problem)
    )


def gpu_candidates(problem: GpuProblem) -> Iterator[GpuTiles]:
    """Sizes worth measuring, the heuristic's first."""
    guess = gpu_heuristic(problem)
    yield guess
    for warpgroups, stages, min_split, units in itertools.product(
        (guess.prefill_warpgroups, 3 - guess.prefill_warpgroups), (12, 8, 4), (4, 2, 8), (264, 528)
    ):
        tiles = replace(
            guess,
            prefill_warpgroups=warpgroups,
            max_stages=stages,
            min_split=min_split,
            wanted_units=units,
        )
        if tiles != guess:
            yield tiles
