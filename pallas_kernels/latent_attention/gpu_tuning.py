"""How large the tiles of the Hopper kernel are, and who gets which registers."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from pallas_kernels import tile_table
from pallas_kernels.gpu_chips import SHARED_BYTES
from pallas_kernels.paging.rows import Case
from pallas_kernels.powers import power_of_two_to

BLOCK = 64
"""Positions that a step takes: one copy. A page holds one or more."""

TILE = 64
"""Rows of a tile: the least that WGMMA takes, and the most whose sums a multiprocessor holds."""

HALVES = 2
"""Warpgroups that sum values; each has one half of the columns."""

PART = 128
"""Columns of a latent that are copied, and summed in one accumulator, at once."""

OTHER_BYTES = 3 * 1024
"""Shared memory for barriers and for one number a row, in kibibytes of their own."""

MAX_STAGES = 6
"""Blocks in flight: enough to hide the latency of memory."""

NUM_REGISTERS = 64 * 1024
"""Of a multiprocessor."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What the sizes of one launch depend on.

    A program has a launch for rows with one new token, whose ``max_queries`` is 1, and one for
    tiles of as many tokens as it has; ``case`` says which rows it is for. ``num_positions``: the
    most that a token sees. The heads are ``num_groups`` groups of ``group_size``, at most ``TILE``.
    """

    case: Case
    max_queries: int
    num_slots: int
    num_positions: int
    num_groups: int
    group_size: int
    latent_rank: int
    rope_dim: int


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """A tile's query tokens (a power of two), its rows rounded up to what a copy takes, blocks in
    flight; how rows are split (``gpu_work.Sizes``); and the registers of a thread by the role of
    its warpgroup.

    Raises ``ValueError`` for other numbers.
    """

    queries: int
    rows: int
    stages: int
    block: int = BLOCK
    min_split: int = 4
    splits: tuple[int, int] = (4, 32)
    wanted_units: int = 264
    sum_registers: int = 168
    score_registers: int = 136
    load_registers: int = 40

    def __post_init__(self) -> None:
        if self.queries < 1 or self.queries & (self.queries - 1):
            raise ValueError(f"queries = {self.queries} is not a power of two")
        if self.rows % 8 or not self.queries <= self.rows <= TILE:
            raise ValueError(f"rows = {self.rows} is not a multiple of 8 up to {TILE}")
        if self.block != BLOCK:
            raise ValueError(f"block = {self.block} is not {BLOCK}")
        if not 2 <= self.stages <= MAX_STAGES:
            raise ValueError(f"stages = {self.stages} is not one of 2 .. {MAX_STAGES}")
        registers = HALVES * self.sum_registers + self.score_registers + self.load_registers
        if 128 * registers > NUM_REGISTERS:
            raise ValueError(f"registers = 128 * {registers} are more than {NUM_REGISTERS}")


def heuristic(problem: Problem) -> Tiles:
    """As many query tokens as fit, as many blocks as fit. Reasoned, not measured."""
    queries = power_of_two_to(min(TILE // problem.group_size, problem.max_queries))
    return Tiles(
        queries=queries,
        rows=-(-queries * problem.group_size // 8) * 8,
        stages=min(most_stages(problem), MAX_STAGES),
    )


def most_stages(problem: Problem) -> int:
    """Blocks that shared memory holds beside a tile."""
    position_bytes = (problem.latent_rank + problem.rope_dim) * 2
    # Sums leave from where queries were.
    row_bytes = max(problem.latent_rank * 2, HALVES * PART * 4) + problem.rope_dim * 2
    used = TILE * (row_bytes + BLOCK * 2) + OTHER_BYTES
    return (SHARED_BYTES - used) // (BLOCK * position_bytes)


def tiles_for(problem: Problem) -> Tiles:
    """The sizes that the kernel is compiled with: of the table, or else of the heuristic."""
    return tile_table.tiles_for("latent_attention", "gpu", problem, lambda: heuristic(problem))


def candidates(problem: Problem) -> Iterator[Tiles]:
    """Sizes worth measuring, the heuristic's first: fewer tokens a tile, fewer blocks in flight,
    and, for rows of one token, other ways to split them. All fit into shared memory, for the
    heuristic has as many blocks as do."""
    guess = heuristic(problem)
    min_splits, units = [guess.min_split], [guess.wanted_units]
    if problem.max_queries == 1:
        min_splits, units = [guess.min_split, 2, 8], [guess.wanted_units, 528]
    for fewer, stages, min_split, wanted_units in itertools.product(
        (1, 2, 4), range(guess.stages, 1, -1), min_splits, units
    ):
        if guess.queries % fewer == 0:
            yield replace(
                guess,
                queries=guess.queries // fewer,
                rows=-(-guess.queries // fewer * problem.group_size // 8) * 8,
                stages=stages,
                min_split=min_split,
                wanted_units=wanted_units,
            )
