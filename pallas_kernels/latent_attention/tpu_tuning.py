"""How large the blocks of the TPU kernel are, and who chooses."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from pallas_kernels import tile_table
from pallas_kernels.dispatch import NoImplementation
from pallas_kernels.paging.rows import Case
from pallas_kernels.paging.tpu_fetch import MAX_PAGES
from pallas_kernels.paging.tpu_registers import LANES, SUBLANES
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


VMEM_BYTES = 48 * 2**20
"""What the kernel may take: three quarters of the smallest VMEM among the chips it is for."""
WRITES = 4
"""Tiles of new positions in flight, half of them being read and half being written."""


def write_bytes(width: int) -> int:
    """The VMEM of tiles of new positions on their way: old ones and new ones.

    They have as many bytes a lane whatever their dtype: 8 rows of 32 bits.
    """
    return 2 * WRITES * SUBLANES * 4 * width


def vmem_bytes(problem: Problem, tiles: Tiles, *, spills: bool = True) -> int:
    """An upper bound of the VMEM that a call takes: the buffers as the kernel allocates them, and
    what may be spilled (logits, masks, converted latents) unless it is left out."""
    position_bytes = problem.width * problem.itemsize

    def walk(tokens: int, positions: int) -> int:
        rows = tokens * problem.num_heads
        positions = min(max(positions, problem.page_size), MAX_PAGES * problem.page_size)
        block = 2 * positions * position_bytes * (2 if problem.is_unwritten else 1)
        # A result has no more lanes than a query, and its numbers no more bytes.
        queries_and_results = 4 * rows * problem.width * problem.q_itemsize
        sums = rows * (2 * LANES + problem.width) * 4
        spilled = 4 * rows * positions * 4 + 3 * positions * problem.width * 4
        return block + queries_and_results + sums + (spilled if spills else 0)

    parts = [
        walk(tiles.short_tokens, tiles.short_positions),
        write_bytes(problem.width),
    ]
    if problem.case != "decode":
        parts.append(walk(tiles.long_tokens, tiles.long_positions))
    return max(parts) + 2**20


def heuristic(problem: Problem) -> Tiles:
    """Reasoned from the sizes of the chips, not measured.

    Raises ``NoImplementation`` where the buffers alone do not fit into ``VMEM_BYTES``.
    """
    position_bytes = problem.width * problem.itemsize
    most_positions = min(BLOCK_BYTES // position_bytes, problem.page_size * problem.pages_per_row)
    row_bytes = problem.width * problem.q_itemsize
    most_tokens = min(LONG_ROWS, QUERY_BYTES // row_bytes) // problem.num_heads
    tiles = Tiles(
        short_positions=power_of_two_to(min(SHORT_POSITIONS, most_positions)),
        long_tokens=power_of_two_to(min(most_tokens, problem.num_tokens)),
        long_positions=power_of_two_to(min(LONG_POSITIONS, most_positions)),
    )
    needed = vmem_bytes(problem, tiles, spills=False)
    if needed > VMEM_BYTES:
        raise NoImplementation(
            f"latent_attention as tpu takes {needed} bytes of VMEM for {problem.num_heads} heads"
            f" and pages of {problem.page_size} positions, above {VMEM_BYTES}: take smaller pages,"
            " or split the heads over more devices"
        )
    return tiles


def tiles_for(problem: Problem) -> Tiles:
    """The sizes that the kernel is compiled with: of the table, or else of the heuristic."""
    return tile_table.tiles_for("latent_attention", "tpu", problem, lambda: heuristic(problem))


def candidates(problem: Problem) -> Iterator[Tiles]:
    """Sizes worth measuring, the heuristic's first, all within ``VMEM_BYTES``: up to twice and down
    to half of it, in the directions that the program has."""
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
        if scaled != guess and vmem_bytes(problem, scaled) <= VMEM_BYTES:
            yield scaled


def _scaled(size: int, factor: float, least: int) -> int:
    return max(int(size * factor), least)
