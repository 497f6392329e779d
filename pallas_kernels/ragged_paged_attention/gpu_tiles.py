"""The sizes that the Hopper kernel is free to take, what they depend on, and the shared memory they
cost."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from pallas_kernels.gpu_chips import SHARED_BYTES
from pallas_kernels.paging.rows import Case
from pallas_kernels.powers import power_of_two_to

WARPGROUP_ROWS = 64
"""Rows of a tile that a warpgroup computes: the least that WGMMA takes."""

OTHER_BYTES = 3 * 1024
"""Shared memory for barriers and for sums over warps."""


@dataclass(frozen=True, kw_only=True)
class Operands:
    """What the tensor cores multiply for pages of a dtype: ``parts`` arrays, whose sum is meant."""

    dtype: np.dtype
    parts: int
    is_converted: bool


def operands_of(pages_dtype: np.dtype) -> Operands:
    """Numbers of 16 bits as they are; of 8 bits as bfloat16, which holds them all; float32 as the
    sum of two bfloat16, the second of which is what the first has rounded away."""
    if pages_dtype.itemsize == 2:
        return Operands(dtype=pages_dtype, parts=1, is_converted=False)
    parts = 2 if pages_dtype == jnp.float32 else 1
    return Operands(dtype=jnp.dtype(jnp.bfloat16), parts=parts, is_converted=True)


@dataclass(frozen=True, kw_only=True)
class GpuProblem:
    """What the sizes of one launch depend on; dtypes by name.

    A program has a launch for rows with one new token, whose ``max_queries`` is 1, and one for
    tiles of as many tokens as it has; ``case`` says which rows it is for. ``num_positions``: the
    most that a token sees. ``num_groups`` of ``group_size`` heads, 64 at most, share a kv head each
    (a kv head has several where its heads are more).
    """

    case: Case
    max_queries: int
    num_slots: int
    num_positions: int
    num_groups: int
    group_size: int
    head_dim: int
    pages_dtype: str
    out_dtype: str

    @property
    def fits_one(self) -> bool:
        """Whether the tokens of a tile are so few that one warpgroup computes it."""
        return power_of_two_to(self.max_queries) * self.group_size <= WARPGROUP_ROWS


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

    def warpgroups(self, problem: GpuProblem) -> int:
        """Those that compute a tile together."""
        return 1 if problem.fits_one else self.prefill_warpgroups

    def stages(self, problem: GpuProblem) -> int:
        """Blocks in flight: ``max_stages``, or what shared memory holds beside a tile. Below 1
        where these sizes do not fit."""
        per_tile, per_stage = self._bytes(problem)
        return min((SHARED_BYTES - per_tile) // per_stage, self.max_stages)

    def least_bytes(self, problem: GpuProblem) -> int:
        """Shared memory with one block in flight."""
        return sum(self._bytes(problem))

    def _bytes(self, problem: GpuProblem) -> tuple[int, int]:
        """Shared memory of a tile and of all that is there once, and of a block in flight."""
        pages_dtype = jnp.dtype(problem.pages_dtype)
        operands, warpgroups = operands_of(pages_dtype), self.warpgroups(problem)
        matrix_bytes = operands.parts * operands.dtype.itemsize * problem.head_dim
        out_bytes = self.columns * jnp.dtype(problem.out_dtype).itemsize
        per_tile = warpgroups * WARPGROUP_ROWS * (matrix_bytes + out_bytes + 4)
        if operands.is_converted:
            per_tile += warpgroups * self.block * matrix_bytes
        return per_tile + OTHER_BYTES, self.block * problem.head_dim * pages_dtype.itemsize
