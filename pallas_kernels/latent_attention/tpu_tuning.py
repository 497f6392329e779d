"""How large the blocks of the TPU kernel are, and who chooses."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from pallas_kernels import tile_table
from pallas_kernels.paging.rows import Case
from pallas_kernels.powers import power_of_two_to


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What the sizes depend on. ``num_heads`` fill whole registers; ``width`` counts the lanes of a
    position, ``itemsize`` the bytes of a stored number, ``q_itemsize`` those of a query's.

    ``is_unwritten``: new latents take part without being written.
    """

    case: Case
    num_heads: int
    width: int
    page_size: int
    itemsize: int
    q_itemsize: int
    num_tokens: int
    pages_per_row: int
    is_unwritten: bool = False


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Tokens of a block of queries and positions of a block of latents, for short and long rows.

    All are powers of two; a row is short if it has at most ``short_tokens``. Blocks consist of
    whole pages, of one at least and 32 at most. Raises ``ValueError`` for other numbers.
    """

    short_tokens: int = 1
    short_positions: int
    long_tokens: int
    long_positions: int

    def __post_init__(self) -> None:
        for name, size in vars(self).items():
            if size < 1 or size & (size - 1):
                raise ValueError(f"{name} = {size} is not a power of two")
        if self.long_tokens < self.short_tokens:
            raise ValueError(
                f"long_tokens = {self.long_tokens} is below short_tokens = {self.short_tokens}"
            )


SHORT_POSITIONS = 1024
"""One token's heads leave the units idle while the softmax goes from product to product: a long
block has less of that for each position."""
LONG_POSITIONS = 512
"""Enough to hide the latency of the copies; the logits of a block are of this times ``LONG_ROWS``.
"""
BLOCK_BYTES = 2 * 2**20
"""Two blocks of latents are in VMEM, beside queries, sums and results."""
LONG_ROWS = 512
"""Rows of the matrix of queries, heads times tokens: a latent of 640 lanes in bfloat16 is then used
for as many FLOPs a byte as the newest chips have."""
QUERY_BYTES = 2 * 2**20
"""A block of queries; the sums in float32 and the results are of this order, too."""


def heuristic(problem: Problem) -> Tiles:
    """Reasoned from the sizes of the chips, not measured."""
    position_bytes = problem.width * problem.itemsize
    most_positions = min(BLOCK_BYTES // position_bytes, problem.page_size * problem.pages_per_row)
    row_bytes = problem.width * problem.q_itemsize
    most_tokens = min(LONG_ROWS, QUERY_BYTES // row_bytes) // problem.num_heads
    return Tiles(
        short_positions=power_of_two_to(min(SHORT_POSITIONS, most_positions)),
        long_tokens=power_of_two_to(min(most_tokens, problem.num_tokens)),
        long_positions=power_of_two_to(min(LONG_POSITIONS, most_positions)),
    )


def tiles_for(problem: Problem) -> Tiles:
    """The sizes that the kernel is compiled with: of the table, or else of the heuristic."""
    return tile_table.tiles_for("latent_attention", "tpu", problem, lambda: heuristic(problem))


def candidates(problem: Problem) -> Iterator[Tiles]:
    """Sizes worth measuring, the heuristic's first: up to twice and down to half of it, in the
    directions that the program has."""
    guess = heuristic(problem)
    yield guess
    factors = (1, 2, 0.5)
    short_factors = factors if problem.case != "prefill" else (1,)
    long_factors = factors if problem.case != "decode" else (1,)
    for short, tokens, long in itertools.product(short_factors, long_factors, long_factors):
        scaled = Tiles(
            short_tokens=guess.short_tokens,
            short_positions=_scaled(guess.short_positions, short, problem.page_size),
            long_tokens=_scaled(guess.long_tokens, tokens, guess.short_tokens),
            long_positions=_scaled(guess.long_positions, long, problem.page_size),
        )
        if scaled != guess:
            yield scaled


def _scaled(size: int, factor: float, least: int) -> int:
    return max(int(size * factor), least)
