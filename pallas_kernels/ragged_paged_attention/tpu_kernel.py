"""The body of the TPU kernel: its loops, its copies and its arithmetic (see ``tpu.py``)."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.paging import tpu_walk
from pallas_kernels.paging.options import Options
from pallas_kernels.paging.tpu_blocks import Blocks, Step, turn_of
from pallas_kernels.paging.tpu_online_softmax import multiply
from pallas_kernels.paging.tpu_registers import LANES, rows_of
from pallas_kernels.paging.tpu_walk import Act, Walk
from pallas_kernels.paging.tpu_writes import write_tiles
from pallas_kernels.ragged_paged_attention import tpu_pages
from pallas_kernels.ragged_paged_attention.tpu_tiles import TpuCall, TpuTiles

UNROLL = 4
"""Kv heads whose operations are laid beside each other."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the kernel is compiled for.

    ``tiles`` fit the call. ``has_short``, ``has_long``: which rows there may be; a program for
    rows of one kind has no code for the others. ``counts``: it tells how many pages it fetched.
    """

    options: Options
    call: TpuCall
    tiles: TpuTiles
    has_short: bool
    has_long: bool
    has_sinks: bool
    has_new: bool
    counts: bool
    out_dtype: np.dtype
    pages_dtype: np.dtype

    @property
    def lanes(self) -> tpu_pages.Lanes:
        return tpu_pages.lanes_of(self.call.head_dim)

    @property
    def kv_heads(self) -> int:
        """Kv heads of a step of the grid."""
        return self.tiles.kv_heads

    @property
    def group(self) -> int:
        """Rows of a token: its query heads of a kv head, up to the next power of two."""
        return self.call.group

    @property
    def page_size(self) -> int:
        return self.call.page_size

    @property
    def compute_dtype(self) -> np.dtype:
        return self.call.compute_dtype

    @property
    def short_tokens(self) -> int:
        """Queries of a block of a short row."""
        return self.call.short_tokens

    @property
    def long_tokens(self) -> int:
        """Queries of a block of a long row, or of a short one if there are no long ones."""
        return self.tiles.long_rows // self.group if self.has_long else self.short_tokens

    @property
    def positions(self) -> int:
        """Positions of the longest block of keys."""
        return max(
            self.tiles.short_positions if self.has_short else 0,
            self.tiles.long_positions if self.has_long else 0,
        )

    @property
    def writes(self) -> bool:
        return self.has_new and self.options.update_kv_cache

    @property
    def merges(self) -> bool:
        """New keys and values take part without being in the pages."""
        return self.has_new and not self.options.update_kv_cache

    @property
    def tile(self) -> int:
        return rows_of(self.pages_dtype)


class Refs(NamedTuple):
    """The kernel's arrays, in its order; see ``tpu_rows`` for those of int32."""

    counts_2: Any
    slot_S: Any
    q_start_S: Any
    q_len_S: Any
    kv_len_S: Any
    new_start_S: Any
    num_tiles_1: Any
    tile_from_W: Any
    tile_page_W: Any
    tile_row_W: Any
    tile_first_W: Any
    tile_last_W: Any
    scales: Any
    sinks: Any
    table: Any
    q: Any
    new: Any
    pages: Any
    out: Any
    num_fetched_1: Any


def run_kernel(shape: Shape, refs: Refs) -> None:
    refs = _of_this_step(shape, refs)
    if shape.counts:

        @pl.when(pl.program_id(0) == 0)
        def _() -> None:
            refs.num_fetched_1[0] = 0

    if shape.writes:
        write_tiles(refs, shape.pages_dtype, shape.tiles.writes)
    num_short, num_rows = refs.counts_2[0], refs.counts_2[1]
    if shape.has_short:
        positions = shape.tiles.short_positions
        _attend(shape, refs, 0, num_short, shape.short_tokens, positions)
    if shape.has_long:
        positions = shape.tiles.long_positions
        _attend(shape, refs, num_short, num_rows, shape.long_tokens, positions)


def _of_this_step(shape: Shape, refs: Refs) -> Refs:
    """What belongs to the kv heads of this step of the grid."""
    if shape.kv_heads == shape.call.num_kv_heads:
        return refs
    heads = pl.ds(pl.program_id(0) * shape.kv_heads, shape.kv_heads)
    return refs._replace(
        q=refs.q.at[heads],
        new=refs.new.at[heads],
        pages=refs.pages.at[:, heads],
        out=refs.out.at[heads],
    )


def _attend(
    shape: Shape, refs: Refs, first: Any, last: Any, block_tokens: int, positions: int
) -> None:
    """Rows ``first`` to ``last`` (excluded), in blocks of ``block_tokens`` queries and of
    ``positions`` keys."""
    kv_heads, lanes = shape.kv_heads, shape.lanes
    rows = block_tokens * shape.group
    blocks = Blocks(options=shape.options, refs=refs, tokens=block_tokens, positions=positions)

    def scoped(**memory: Any) -> None:
        _Walk.in_memory(shape, refs, blocks, **memory).run(jnp.int32(first), last)

    block = (2, kv_heads, positions, lanes.width)
    pl.run_scoped(
        scoped,
        q=pltpu.VMEM((2, kv_heads, rows, lanes.key_width), shape.compute_dtype),
        kv=pltpu.VMEM(block, shape.pages_dtype),
        new=pltpu.VMEM(block if shape.merges else (1, 1, 8, LANES), shape.pages_dtype),
        out=pltpu.VMEM((2, kv_heads, rows, lanes.value_width), shape.out_dtype),
        **tpu_walk.scratch(refs.table, (kv_heads, rows), lanes.value_width),
    )


@dataclass(frozen=True, kw_only=True)
class _Walk(Walk):
    """A kv head has a matrix of keys and values and one of queries, token by token: the rows of a
    token are the query heads that share it."""

    shape: Shape
    refs: Refs

    @property
    def first_head(self) -> Any:
        """The first kv head of this step of the grid, among all."""
        is_all = self.shape.kv_heads == self.shape.call.num_kv_heads
        return 0 if is_all else pl.program_id(0) * self.shape.kv_heads

    def _rows_of(self, step: Step) -> Any:
        rows = self.blocks.tokens * self.shape.group
        first = (self.refs.q_start_S[step.row] + step.chunk * self.blocks.tokens) * self.shape.group
        return pl.ds(pl.multiple_of(first, self.shape.short_tokens * self.shape.group), rows)

    def copy_queries(self, step: Step, count: jax.Array, act: Act) -> None:
        turn = turn_of(count)
        source = self.refs.q.at[:, self._rows_of(step), :]
        act(pltpu.make_async_copy(source, self.q.at[turn], self.q_semaphores.at[turn]))

    def copy_out(self, step: Step, count: jax.Array, act: Act) -> None:
        turn = turn_of(count)
        target = self.refs.out.at[:, self._rows_of(step), :]
        act(pltpu.make_async_copy(self.out.at[turn], target, self.out_semaphores.at[turn]))

    def begin(self) -> None:
        super().begin()
        if self.shape.has_sinks:
            self.softmax.begin_with(self.refs.sinks)

    def places(self) -> tuple[jax.Array, jax.Array]:
        logits = (self.blocks.tokens * self.shape.group, self.blocks.positions)
        row = jax.lax.broadcasted_iota(jnp.int32, logits, 0)
        shift = jnp.int32(self.shape.group.bit_length() - 1)
        nth = jax.lax.broadcasted_iota(jnp.int32, logits, 1)
        return nth, jax.lax.shift_right_logical(row, shift)

    def add(self, turn: jax.Array, q_turn: jax.Array, is_seen: jax.Array | None) -> None:
        def one_head(head: jax.Array, _: None) -> None:
            self.add_head(head, turn, q_turn, is_seen)

        # Neighbours fill the gaps in each other's chains of operations; long blocks have no gaps.
        kv_heads = self.shape.kv_heads
        is_short = self.blocks.tokens == self.shape.short_tokens
        unroll = math.gcd(kv_heads, UNROLL) if is_short else 1
        jax.lax.fori_loop(0, kv_heads, one_head, None, unroll=unroll)

    def add_head(
        self, head: jax.Array, turn: jax.Array, q_turn: jax.Array, is_seen: jax.Array | None
    ) -> None:
        shape, options, lanes = self.shape, self.shape.options, self.shape.lanes
        keys = self.fetch.kv[turn, head, :, : lanes.key_width].astype(shape.compute_dtype)
        values = self.fetch.kv[turn, head, :, lanes.value_register :].astype(shape.compute_dtype)
        logits = multiply(self.q[q_turn, head], keys, 1) * self.refs.scales[self.first_head + head]
        if options.logit_softcap is not None:
            cap = options.logit_softcap
            logits = cap * jnp.tanh(logits * (1.0 / cap))
        self.softmax.add(head, logits, values, is_seen)

    def end(self, q_turn: jax.Array) -> None:
        def one_head(head: jax.Array, _: None) -> None:
            scale = self.refs.scales[self.shape.call.num_kv_heads + self.first_head + head]
            average = self.softmax.average(head) * scale
            self.out[q_turn, head] = average.astype(self.shape.out_dtype)

        jax.lax.fori_loop(0, self.shape.kv_heads, one_head, None)
