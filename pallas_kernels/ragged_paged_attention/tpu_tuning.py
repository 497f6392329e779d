"""Sizes that make a kernel faster or slower and change nothing else, and how they are chosen.

They are reasoned from the figures of the chip, not measured. ``tpu_tiles_for`` is the one place
that the kernel asks: the table of ``tile_table.py`` answers before the heuristic does.
"""

import math
from dataclasses import replace
from functools import partial
from itertools import product

import jax.numpy as jnp

from pallas_kernels import dispatch, tile_table, tpu_chips
from pallas_kernels.dispatch import Chip
from pallas_kernels.ragged_paged_attention import tpu_pages
from pallas_kernels.ragged_paged_attention.tpu_tiles import (
    MAX_PAGES,
    TpuCall,
    TpuTiles,
    power_of_two_from,
    power_of_two_to,
    tpu_vmem_bytes,
)

__all__ = [
    "TpuCall",
    "TpuTiles",
    "tpu_budget",
    "tpu_candidates",
    "tpu_heuristic",
    "tpu_tiles_for",
]

WRITE_BYTES = 2**21
"""Of new positions on their way."""
BLOCK_SECONDS = 2e-6
"""What the start of a copy and the chain of a softmax are taken to need."""
LEAST_ROWS = 256
"""Rows that make up for bringing keys into the matrix unit."""
FLOAT32_PASSES = 6
"""Products of bfloat16 that make one of float32."""


def tpu_tiles_for(call: TpuCall) -> TpuTiles:
    """The sizes for a call on the chip of ``dispatch.chip()``: of the table, or else reasoned."""
    guess = partial(tpu_heuristic, dispatch.chip(), call)
    return tile_table.tiles_for("ragged_paged_attention", "tpu", call, guess)


def tpu_heuristic(chip: Chip, call: TpuCall) -> TpuTiles:
    """Reasoned sizes.

    Decoding reads: a block is what the chip reads in ``BLOCK_SECONDS``, but no longer than rows
    often are. Prefilling computes: with R rows a block of queries computes R FLOPs for a byte of
    bfloat16 keys, so it has as many as the chip computes for a byte. What does not fit is computed
    for fewer kv heads at a time, then for fewer rows. Where a device has several cores, the kv
    heads are divided between them. Raises ``NoImplementation`` where the least does not fit.
    """
    known = tpu_chips.tpu_chip(chip)
    most = power_of_two_from(math.ceil(known.bytes_per_second * BLOCK_SECONDS))
    kv_heads = call.num_kv_heads
    if kv_heads % known.cores == 0:
        kv_heads //= known.cores
    while kv_heads > 1 and kv_heads * call.page_size * call.position_bytes > most:
        kv_heads = _fewer(kv_heads)
    rows = known.flops_per_byte * jnp.dtype(call.pages_dtype).itemsize / 2
    if call.compute_dtype == jnp.float32:
        rows /= FLOAT32_PASSES
    short_positions = power_of_two_to(most // (kv_heads * call.position_bytes))
    tile_bytes = 2 * kv_heads * tpu_pages.rows_of(call.pages_dtype) * call.position_bytes
    tiles = TpuTiles(
        kv_heads=kv_heads,
        short_positions=max(call.page_size, min(short_positions, 1024)),
        long_positions=max(call.page_size, 512),
        long_rows=max(LEAST_ROWS, power_of_two_from(math.ceil(rows))),
        writes=max(4, min(32, power_of_two_to(WRITE_BYTES // tile_bytes))),
    )
    budget = tpu_budget(chip)
    while tpu_vmem_bytes(call, tiles) > budget:
        if tiles.kv_heads > 1:
            tiles = replace(tiles, kv_heads=_fewer(tiles.kv_heads))
        elif tiles.long_rows > call.short_rows:
            tiles = replace(tiles, long_rows=tiles.long_rows // 2)
        elif tiles.long_positions > call.page_size:
            tiles = replace(tiles, long_positions=tiles.long_positions // 2)
        else:
            raise dispatch.NoImplementation(
                f"ragged_paged_attention as tpu takes {tpu_vmem_bytes(call, tiles)} bytes of VMEM"
                f" for its least blocks, above {budget}, half of what {chip.kind} has: take smaller"
                " pages, or split the heads over more devices"
            )
    return tiles


def tpu_candidates(chip: Chip, call: TpuCall) -> list[TpuTiles]:
    """Sizes worth measuring, the heuristic's first, all within ``tpu_budget``: up to twice and down
    to half of it in every direction that the program has.

    The writes of a mixed program are those of the heuristic: measure them with a decoding one.
    """
    base = tpu_heuristic(chip, call)
    budget, most = tpu_budget(chip), call.page_size * MAX_PAGES
    has_short, has_long = call.case != "prefill", call.case != "decode"

    def around(size: int, least: int, most: int, is_there: bool) -> list[int]:
        return (
            [x for x in (size, size // 2, size * 2) if least <= x <= most] if is_there else [size]
        )

    heads = {base.kv_heads, _fewer(base.kv_heads), call.num_kv_heads}
    sizes = product(
        sorted(heads, reverse=True),
        around(base.short_positions, call.page_size, most, has_short),
        around(base.long_positions, call.page_size, most, has_long),
        around(base.long_rows, call.short_rows, 2048, has_long),
        around(base.writes, 2, 64, not has_long),
    )
    names = ("kv_heads", "short_positions", "long_positions", "long_rows", "writes")
    candidates = (TpuTiles(**dict(zip(names, size, strict=True))) for size in sizes)
    return [base, *(x for x in candidates if x != base and tpu_vmem_bytes(call, x) <= budget)]


def tpu_budget(chip: Chip) -> int:
    """The VMEM that a call may take: half. The other half is for what the compiler keeps there."""
    return tpu_chips.tpu_chip(chip).vmem_bytes // 2


def _fewer(kv_heads: int) -> int:
    """The next smaller divisor; of 1 it is 1."""
    return max(n for n in range(1, max(kv_heads, 2)) if kv_heads % n == 0)
