"""The sizes that the TPU kernel is free to take, what they depend on, and the VMEM they cost."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from pallas_kernels.paging.rows import Case
from pallas_kernels.paging.tpu_fetch import MAX_PAGES
from pallas_kernels.paging.tpu_registers import LANES, rows_of
from pallas_kernels.powers import power_of_two_from, power_of_two_to
from pallas_kernels.ragged_paged_attention import tpu_pages


@dataclass(frozen=True, kw_only=True)
class TpuCall:
    """What the sizes depend on. ``group_size``: query heads of a kv head; dtypes by name.

    ``is_unwritten``: new keys and values take part without being written.
    """

    case: Case
    page_size: int
    num_kv_heads: int
    group_size: int
    head_dim: int
    q_dtype: str
    pages_dtype: str
    is_unwritten: bool = False

    @property
    def group(self) -> int:
        """Rows of a token in the matrix of queries: tokens must be found by shifting."""
        return power_of_two_from(self.group_size)

    @property
    def is_narrow(self) -> bool:
        """Queries and results are of bfloat16."""
        return self.q_dtype == "bfloat16"

    @property
    def compute_dtype(self) -> np.dtype:
        narrow = self.is_narrow and self.pages_dtype != "float32"
        return jnp.dtype(jnp.bfloat16 if narrow else jnp.float32)

    @property
    def short_tokens(self) -> int:
        """Tokens whose queries fill one register: a row of no more is short."""
        register = rows_of(jnp.bfloat16 if self.is_narrow else jnp.float32)
        return max(1, register // self.group)

    @property
    def short_rows(self) -> int:
        return self.short_tokens * self.group

    @property
    def position_bytes(self) -> int:
        """Bytes of a position of one kv head."""
        return tpu_pages.lanes_of(self.head_dim).width * jnp.dtype(self.pages_dtype).itemsize


@dataclass(frozen=True, kw_only=True)
class TpuTiles:
    """Sizes of the TPU kernel, all powers of two except ``kv_heads``, which divides their number.

    - ``kv_heads``: those that are copied and computed together; the grid is over groups of them.
    - ``short_positions``, ``long_positions``: of a block of keys, for short and for long rows.
    - ``long_rows``: of the matrix of queries of one kv head in a block of a long row.
    - ``writes``: tiles of new positions on their way, half being read and half being written.
    """

    kv_heads: int
    short_positions: int
    long_positions: int
    long_rows: int
    writes: int

    def fit(self, call: TpuCall, num_tokens: int, pages_per_row: int) -> "TpuTiles":
        """No larger than what there is, and at least one page and one token."""
        page_size = call.page_size
        most = page_size * min(MAX_PAGES, power_of_two_from(pages_per_row))
        most_rows = max(call.short_rows, power_of_two_to(num_tokens * call.group))
        return TpuTiles(
            kv_heads=math.gcd(self.kv_heads, call.num_kv_heads),
            short_positions=min(max(self.short_positions, page_size), most),
            long_positions=min(max(self.long_positions, page_size), most),
            long_rows=min(max(self.long_rows, call.short_rows), most_rows),
            writes=max(self.writes, 2),
        )


def tpu_vmem_bytes(call: TpuCall, tiles: TpuTiles) -> int:
    """An upper bound of the VMEM that a call takes, which the compiler is given as its limit: the
    buffers as the kernel allocates them, and what may be spilled (logits, masks, converted keys).
    """
    lanes = tpu_pages.lanes_of(call.head_dim)
    compute, out = call.compute_dtype.itemsize, 2 if call.is_narrow else 4

    def walk(rows: int, positions: int) -> int:
        block = 2 * positions * call.position_bytes * (2 if call.is_unwritten else 1)
        queries = 2 * rows * lanes.key_width * compute
        results = 2 * rows * lanes.value_width * out
        sums = rows * (2 * LANES + lanes.value_width) * 4
        spilled = 4 * rows * positions * 4 + 3 * positions * lanes.width * 4
        return tiles.kv_heads * (block + queries + results + sums) + spilled

    parts = []
    if call.case != "prefill":
        parts.append(walk(call.short_rows, tiles.short_positions))
    if call.case != "decode":
        parts.append(walk(max(tiles.long_rows, call.short_rows), tiles.long_positions))
    if not call.is_unwritten:
        tile = rows_of(call.pages_dtype) * call.position_bytes
        parts.append(2 * tiles.writes * tiles.kv_heads * tile)
    sinks = 2 * tiles.kv_heads * call.short_rows * LANES * 4
    return max(parts) + sinks + 2**20
