"""Sizes that decide how fast a kernel is and never what it returns, and the rules that choose them.

They are reasoned from the sizes of memories and registers: no chip has measured them.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True, kw_only=True)
class GpuTiles:
    """Sizes of the Hopper kernel."""

    columns: int
    """Columns of the head dim that one accumulator of weighted values has."""

    prefill_warpgroups: int
    """Warpgroups that compute a tile of a prompt, 64 rows each: two leave a thread 168 registers,
    one leaves it 255."""

    block: int = 64
    """Positions that a step takes: one copy of keys, one of values. A page holds one or more."""

    max_stages: int = 12
    """Blocks of keys or of values in flight: enough to hide the latency of memory."""

    min_split: int = 4
    """Blocks that a part of a split row has at least."""

    splits: tuple[int, int] = (4, 32)
    """The least and the largest number of parts that a row may be split into."""

    wanted_units: int = 264
    """Units of work that keep all multiprocessors of an H100 or H200 busy: two for each of 132."""


def gpu_heuristic(head_dim: int, pages_dtype: jax.typing.DTypeLike) -> GpuTiles:
    """The tiles for keys and values of ``head_dim`` that lie in pages of ``pages_dtype``."""
    is_wide = head_dim > 128
    # Float32 doubles what lies in shared memory, and the products that registers hold.
    is_float32 = jnp.dtype(pages_dtype) == jnp.float32
    return GpuTiles(
        columns=64 if is_wide else head_dim,
        prefill_warpgroups=1 if is_float32 or head_dim > 192 else 2,
    )
