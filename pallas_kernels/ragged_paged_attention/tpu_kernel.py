"""The body of the TPU kernel: its loops, its copies and its arithmetic (see ``tpu.py``)."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.ragged_paged_attention import tpu_pages
from pallas_kernels.ragged_paged_attention.options import Options
from pallas_kernels.ragged_paged_attention.rows import divide, divide_up
from pallas_kernels.ragged_paged_attention.tpu_pages import LANES
from pallas_kernels.ragged_paged_attention.tpu_tiles import TpuCall, TpuTiles

UNROLL = 4
"""Kv heads whose operations are laid beside each other."""
UNSEEN = -1e30
"""The logit of what a query must not see: finite, so that no difference of two is NaN."""


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
        return tpu_pages.rows_of(self.pages_dtype)


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
        _write(shape, refs)
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


def _write(shape: Shape, refs: Refs) -> None:
    """Brings the tiles that hold new positions, puts these in and writes them back."""
    num_tiles, in_flight = refs.num_tiles_1[0], shape.tiles.writes
    ahead = in_flight // 2
    shape_of_tile = (shape.kv_heads, shape.tile, shape.lanes.width)

    def scoped(old: Any, new: Any, reading: Any, writing: Any) -> None:
        def place_of(i: jax.Array) -> Any:
            row = pl.multiple_of(refs.tile_row_W[i], shape.tile)
            return refs.pages.at[refs.tile_page_W[i], :, pl.ds(row, shape.tile), :]

        def reads(i: jax.Array) -> tuple[Any, Any]:
            nth = jax.lax.rem(i, jnp.int32(in_flight))
            start = pl.multiple_of(refs.tile_from_W[i], shape.tile)
            new_tile = refs.new.at[:, pl.ds(start, shape.tile), :]
            return (
                pltpu.make_async_copy(place_of(i), old.at[nth], reading.at[nth]),
                pltpu.make_async_copy(new_tile, new.at[nth], reading.at[nth]),
            )

        def write(i: jax.Array) -> Any:
            nth = jax.lax.rem(i, jnp.int32(in_flight))
            return pltpu.make_async_copy(old.at[nth], place_of(i), writing.at[nth])

        def start_reads(i: jax.Array, none: None = None) -> None:
            @pl.when(i < num_tiles)
            def _() -> None:
                @pl.when(i >= in_flight)
                def _() -> None:
                    write(i - in_flight).wait()

                for copy in reads(i):
                    copy.start()

        def one_tile(i: jax.Array, _: None) -> None:
            start_reads(i + ahead)
            for copy in reads(i):
                copy.wait()
            nth = jax.lax.rem(i, jnp.int32(in_flight))
            first, last = refs.tile_first_W[i], refs.tile_last_W[i]
            is_new = words_where(lambda row: (row >= first) & (row < last), shape.tile, shape)
            for head in range(shape.kv_heads):
                put_where(is_new, old.at[nth, head], new[nth, head])
            write(i).start()

        def end(i: jax.Array, _: None) -> None:
            write(i).wait()

        jax.lax.fori_loop(0, ahead, start_reads, None)
        jax.lax.fori_loop(0, num_tiles, one_tile, None)
        jax.lax.fori_loop(jnp.maximum(num_tiles - in_flight, 0), num_tiles, end, None)

    pl.run_scoped(
        scoped,
        pltpu.VMEM((in_flight, *shape_of_tile), shape.pages_dtype),
        pltpu.VMEM((in_flight, *shape_of_tile), shape.pages_dtype),
        pltpu.SemaphoreType.DMA((in_flight,)),
        pltpu.SemaphoreType.DMA((in_flight,)),
    )


def words_where(is_chosen: Any, num_rows: int, shape: Shape) -> jax.Array:
    """Masks of bits for ``num_rows`` positions as words of 32 bits, which they share when narrow.

    Choosing among bits works for all dtypes alike, and leaves what is not chosen as it was, be it
    NaN.
    """
    packing = tpu_pages.packing_of(shape.pages_dtype)
    bits = 32 // packing
    words = (num_rows // packing, shape.lanes.width)
    word = jax.lax.broadcasted_iota(jnp.int32, words, 0)
    mask = jnp.zeros(words, jnp.int32)
    for i in range(packing):
        element = ((1 << bits) - 1) << (bits * i)
        element = jnp.int32(element - (1 << 32) if element >= 1 << 31 else element)
        mask |= jnp.where(is_chosen(word * packing + i), element, jnp.int32(0))
    return mask


def put_where(mask: jax.Array, ref: Any, new: jax.Array | None) -> None:
    """Replaces the masked bits of a matrix of positions by those of ``new``, or by zeros."""
    kept = pltpu.bitcast(ref[...], jnp.int32) & ~mask
    if new is not None:
        kept |= pltpu.bitcast(new, jnp.int32) & mask
    ref[...] = pltpu.bitcast(kept, ref.dtype)


class Step(NamedTuple):
    """What is computed next: block ``block`` for queries ``chunk`` of row ``row`` (all int32)."""

    row: jax.Array
    chunk: jax.Array
    block: jax.Array


def _attend(
    shape: Shape, refs: Refs, first: Any, last: Any, block_tokens: int, positions: int
) -> None:
    """Rows ``first`` to ``last`` (excluded), in blocks of ``block_tokens`` queries and of
    ``positions`` keys."""
    kv_heads, lanes = shape.kv_heads, shape.lanes
    rows = block_tokens * shape.group

    def scoped(**scratch: Any) -> None:
        _Walk(shape, refs, block_tokens, positions, **scratch).run(jnp.int32(first), last)

    column = (kv_heads, rows, LANES)
    block = (2, kv_heads, positions, lanes.width)
    pl.run_scoped(
        scoped,
        table=pltpu.SMEM((2, *refs.table.shape[1:]), jnp.int32),
        fetched=pltpu.SMEM((2, 2), jnp.int32),
        q=pltpu.VMEM((2, kv_heads, rows, lanes.key_width), shape.compute_dtype),
        kv=pltpu.VMEM(block, shape.pages_dtype),
        new=pltpu.VMEM(block if shape.merges else (1, 1, 8, LANES), shape.pages_dtype),
        out=pltpu.VMEM((2, kv_heads, rows, lanes.value_width), shape.out_dtype),
        top=pltpu.VMEM(column, jnp.float32),
        total=pltpu.VMEM(column, jnp.float32),
        sums=pltpu.VMEM((kv_heads, rows, lanes.value_width), jnp.float32),
        table_semaphores=pltpu.SemaphoreType.DMA((2,)),
        q_semaphores=pltpu.SemaphoreType.DMA((2,)),
        kv_semaphores=pltpu.SemaphoreType.DMA((2,)),
        new_semaphores=pltpu.SemaphoreType.DMA((2,)),
        out_semaphores=pltpu.SemaphoreType.DMA((2,)),
    )


@dataclass(frozen=True)
class _Walk:
    """The loops over rows, blocks of queries and blocks of positions, and their buffers.

    Of the pairs of buffers, one is computed with while the other is filled (or emptied, for
    ``out``). ``fetched[buffer]`` holds the pages that were asked for: a bit each, and their number.
    """

    shape: Shape
    refs: Refs
    block_tokens: int
    block_positions: int
    table: Any
    fetched: Any
    q: Any
    kv: Any
    new: Any
    out: Any
    top: Any
    total: Any
    sums: Any
    table_semaphores: Any
    q_semaphores: Any
    kv_semaphores: Any
    new_semaphores: Any
    out_semaphores: Any

    def run(self, first: jax.Array, last: jax.Array) -> None:
        @pl.when(first < last)
        def _() -> None:
            self.table_copy(first).start()
            self.table_copy(first).wait()
            start = Step(first, jnp.int32(0), self.blocks(first, jnp.int32(0))[0])
            self.q_copy(start, jnp.int32(0)).start()
            self.fetch(start, jnp.int32(0))
            none = jnp.int32(0)

            def one_row(row: jax.Array, done: Any) -> Any:
                # The row before is finished, so the buffer of its table is free.
                @pl.when(row + 1 < last)
                def _() -> None:
                    self.table_copy(row + 1).start()

                def one_chunk(chunk: jax.Array, done: Any) -> Any:
                    return self.one_chunk(Step(row, chunk, none), last, *done)

                return jax.lax.fori_loop(0, self.chunks(row), one_chunk, done)

            _, num_chunks = jax.lax.fori_loop(first, last, one_row, (none, none))
            self.out_copy(start, num_chunks - 1).wait()

    def one_chunk(
        self, step: Step, last: jax.Array, num_blocks: jax.Array, num_chunks: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """All blocks for one block of queries.

        The numbers of blocks and chunks done say which buffers are whose turn.
        """
        first_block, last_block = self.blocks(step.row, step.chunk)
        self.begin()

        def one_block(block: jax.Array, num_blocks: jax.Array) -> jax.Array:
            here = Step(step.row, step.chunk, block)
            self.prefetch(here, block + 1 < last_block, last, num_blocks + 1, num_chunks + 1)

            @pl.when(block == first_block)
            def _() -> None:
                self.q_copy(here, num_chunks).wait()

            self.arrive(here, turn_of(num_blocks))
            self.compute(here, turn_of(num_blocks), turn_of(num_chunks))
            return num_blocks + 1

        num_blocks = jax.lax.fori_loop(first_block, last_block, one_block, num_blocks)
        self.end(turn_of(num_chunks))

        # One result at a time: where a block reaches beyond its row, the next row comes after it.
        @pl.when(num_chunks > 0)
        def _() -> None:
            self.out_copy(step, num_chunks - 1).wait()

        self.out_copy(step, num_chunks).start()
        return num_blocks, num_chunks + 1

    # Where things are.

    @property
    def first_head(self) -> Any:
        """The first kv head of this step of the grid, among all."""
        is_all = self.shape.kv_heads == self.shape.call.num_kv_heads
        return 0 if is_all else pl.program_id(0) * self.shape.kv_heads

    def first_new(self, row: jax.Array) -> jax.Array:
        return self.refs.kv_len_S[row] - self.refs.q_len_S[row]

    def chunks(self, row: jax.Array) -> jax.Array:
        """The number of blocks of queries."""
        return divide_up(self.refs.q_len_S[row], self.block_tokens)

    def positions(self, row: jax.Array, chunk: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The first position that a block of queries can see, and the end of those."""
        options, kv_len = self.shape.options, self.refs.kv_len_S[row]
        first_q = self.first_new(row) + chunk * self.block_tokens
        first, last = jnp.int32(0), kv_len
        if options.causal:
            last = jnp.minimum(first_q + self.block_tokens, kv_len)
        if options.sliding_window is not None:
            first = jnp.maximum(first_q - (options.sliding_window - 1), 0)
        return first, last

    def blocks(self, row: jax.Array, chunk: jax.Array) -> tuple[jax.Array, jax.Array]:
        first, last = self.positions(row, chunk)
        return divide(first, self.block_positions), divide_up(last, self.block_positions)

    # Copies.

    def table_copy(self, row: jax.Array) -> Any:
        turn = turn_of(row)
        source = self.refs.table.at[self.refs.slot_S[row]]
        return pltpu.make_async_copy(source, self.table.at[turn], self.table_semaphores.at[turn])

    def _rows_of(self, step: Step) -> Any:
        rows = self.block_tokens * self.shape.group
        first = (self.refs.q_start_S[step.row] + step.chunk * self.block_tokens) * self.shape.group
        return pl.ds(pl.multiple_of(first, self.shape.short_tokens * self.shape.group), rows)

    def q_copy(self, step: Step, count: jax.Array) -> Any:
        turn = turn_of(count)
        source = self.refs.q.at[:, self._rows_of(step), :]
        return pltpu.make_async_copy(source, self.q.at[turn], self.q_semaphores.at[turn])

    def out_copy(self, step: Step, count: jax.Array) -> Any:
        turn = turn_of(count)
        target = self.refs.out.at[:, self._rows_of(step), :]
        return pltpu.make_async_copy(self.out.at[turn], target, self.out_semaphores.at[turn])

    def page_copy(self, page: jax.Array, nth: jax.Array, turn: jax.Array) -> Any:
        size = self.shape.page_size
        place = pl.ds(pl.multiple_of(nth * size, size), size)
        target = self.kv.at[turn, :, place, :]
        return pltpu.make_async_copy(self.refs.pages.at[page], target, self.kv_semaphores.at[turn])

    def new_copy(self, step: Step, turn: jax.Array) -> Any:
        """The new positions as they would lie in this block, and around them whatever there is."""
        tile, size = self.shape.tile, self.block_positions
        first_tile = divide(self.first_new(step.row), tile) * tile
        start = self.refs.new_start_S[step.row] + step.block * size - first_tile
        source = self.refs.new.at[:, pl.ds(pl.multiple_of(start, tile), size), :]
        return pltpu.make_async_copy(source, self.new.at[turn], self.new_semaphores.at[turn])

    def has_new(self, step: Step) -> jax.Array:
        return (step.block + 1) * self.block_positions > self.first_new(step.row)

    def fetch(self, step: Step, turn: jax.Array) -> None:
        """Asks for the pages of a block that its queries can see. Page 0 is no page."""
        first, last = self.positions(step.row, step.chunk)
        base = step.block * self.block_positions
        first_page = divide(jnp.maximum(first - base, 0), self.shape.page_size)
        last_page = jnp.minimum(divide_up(last - base, self.shape.page_size), self.block_pages)

        def one_page(nth: jax.Array, found: Any) -> Any:
            bits, count = found
            entry = step.block * self.block_pages + nth
            page = self.table[
                turn_of(step.row), divide(entry, LANES), jax.lax.rem(entry, jnp.int32(LANES))
            ]

            @pl.when(page > 0)
            def _() -> None:
                self.page_copy(page, nth, turn).start()

            is_page = jnp.where(page > 0, jnp.int32(1), jnp.int32(0))
            return bits | jax.lax.shift_left(is_page, nth), count + is_page

        found = (jnp.int32(0), jnp.int32(0))
        bits, count = jax.lax.fori_loop(first_page, last_page, one_page, found)
        self.fetched[turn, 0] = bits
        self.fetched[turn, 1] = count
        if self.shape.counts:
            self.refs.num_fetched_1[0] += count
        if self.shape.merges:

            @pl.when(self.has_new(step))
            def _() -> None:
                self.new_copy(step, turn).start()

    def prefetch(
        self,
        step: Step,
        is_same_chunk: jax.Array,
        last: jax.Array,
        num_blocks: jax.Array,
        num_chunks: jax.Array,
    ) -> None:
        """Asks for what is computed next: a block, a block of queries, or another row."""
        turn = turn_of(num_blocks)

        @pl.when(is_same_chunk)
        def _() -> None:
            self.fetch(Step(step.row, step.chunk, step.block + 1), turn)

        is_same_row = step.chunk + 1 < self.chunks(step.row)
        is_last = jnp.logical_not(is_same_row) & (step.row + 1 >= last)

        @pl.when(jnp.logical_not(is_same_chunk | is_last))
        def _() -> None:
            row = jnp.where(is_same_row, step.row, step.row + 1)
            chunk = jnp.where(is_same_row, step.chunk + 1, 0)

            @pl.when(jnp.logical_not(is_same_row))
            def _() -> None:
                self.table_copy(row).wait()

            following = Step(row, chunk, self.blocks(row, chunk)[0])
            self.q_copy(following, num_chunks).start()
            self.fetch(following, turn)

    def arrive(self, step: Step, turn: jax.Array) -> None:
        """Waits for a block, puts new positions in if they are not in the pages, and makes zeros of
        all that was not fetched or is beyond the row: it may be NaN."""
        shape, kv_len = self.shape, self.refs.kv_len_S[step.row]
        base = step.block * self.block_positions

        def one_page(_: jax.Array, none: None) -> None:
            # Any page will do: all have the same size, and it is that which is waited for.
            self.page_copy(jnp.int32(0), jnp.int32(0), turn).wait()

        jax.lax.fori_loop(0, self.fetched[turn, 1], one_page, None)
        if shape.merges:

            @pl.when(self.has_new(step))
            def _() -> None:
                self.new_copy(step, turn).wait()
                first_new = self.first_new(step.row)
                is_new = words_where(
                    lambda nth: (nth + base >= first_new) & (nth + base < kv_len),
                    self.block_positions,
                    shape,
                )
                for head in range(shape.kv_heads):
                    put_where(is_new, self.kv.at[turn, head], self.new[turn, head])

        bits = self.fetched[turn, 0]

        @pl.when((bits != self.all_bits) | (base + self.block_positions > kv_len))
        def _() -> None:
            is_nothing = words_where(
                lambda nth: jnp.logical_not(self.is_fetched(bits, nth) & (nth + base < kv_len)),
                self.block_positions,
                shape,
            )
            for head in range(shape.kv_heads):
                put_where(is_nothing, self.kv.at[turn, head], None)

    @property
    def block_pages(self) -> int:
        return self.block_positions // self.shape.page_size

    @property
    def all_bits(self) -> int:
        return (1 << self.block_pages) - 1 if self.block_pages < 32 else -1

    def is_fetched(self, bits: jax.Array, nth: jax.Array) -> jax.Array:
        """Whether the page of each position of a block was fetched."""
        page = jax.lax.shift_right_logical(nth, jnp.int32(self.shape.page_size.bit_length() - 1))
        return (jax.lax.shift_right_logical(jnp.broadcast_to(bits, nth.shape), page) & 1) == 1

    # The online softmax.

    def begin(self) -> None:
        self.sums[...] = jnp.zeros_like(self.sums)
        if not self.shape.has_sinks:
            self.top[...] = jnp.full_like(self.top, UNSEEN)
            self.total[...] = jnp.zeros_like(self.total)
            return
        rows = self.refs.sinks.shape[1]
        for start in range(0, self.top.shape[1], rows):
            self.top[:, start : start + rows, :] = self.refs.sinks[...]
        self.total[...] = jnp.ones_like(self.total)

    def compute(self, step: Step, turn: jax.Array, q_turn: jax.Array) -> None:
        shape, options = self.shape, self.shape.options
        kv_len, bits = self.refs.kv_len_S[step.row], self.fetched[turn, 0]
        first_key = step.block * self.block_positions
        last_key = first_key + (self.block_positions - 1)
        first_q = self.first_new(step.row) + step.chunk * self.block_tokens
        last_q = first_q + (self.block_tokens - 1)
        sees_all = (bits == self.all_bits) & (last_key < kv_len)
        if options.causal:
            sees_all &= last_key <= first_q
        if options.sliding_window is not None:
            sees_all &= first_key > last_q - options.sliding_window

        def is_seen() -> jax.Array:
            logits = (self.block_tokens * shape.group, self.block_positions)
            nth = jax.lax.broadcasted_iota(jnp.int32, logits, 1)
            row = jax.lax.broadcasted_iota(jnp.int32, logits, 0)
            shift = jnp.int32(shape.group.bit_length() - 1)
            position = first_q + jax.lax.shift_right_logical(row, shift)
            seen = self.is_fetched(bits, nth) & (nth + first_key < kv_len)
            if options.causal:
                seen &= nth + first_key <= position
            if options.sliding_window is not None:
                seen &= nth + first_key > position - options.sliding_window
            return seen

        @pl.when(sees_all)
        def _() -> None:
            self.add_heads(turn, q_turn, None)

        @pl.when(jnp.logical_not(sees_all))
        def _() -> None:
            self.add_heads(turn, q_turn, is_seen())

    def add_heads(self, turn: jax.Array, q_turn: jax.Array, is_seen: jax.Array | None) -> None:
        def one_head(head: jax.Array, _: None) -> None:
            self.add(head, turn, q_turn, is_seen)

        # Neighbours fill the gaps in each other's chains of operations; long blocks have no gaps.
        kv_heads = self.shape.kv_heads
        is_short = self.block_tokens == self.shape.short_tokens
        unroll = math.gcd(kv_heads, UNROLL) if is_short else 1
        jax.lax.fori_loop(0, kv_heads, one_head, None, unroll=unroll)

    def add(
        self, head: jax.Array, turn: jax.Array, q_turn: jax.Array, is_seen: jax.Array | None
    ) -> None:
        """Adds a block to the softmax of one kv head."""
        shape, options, lanes = self.shape, self.shape.options, self.shape.lanes
        keys = self.kv[turn, head, :, : lanes.key_width].astype(shape.compute_dtype)
        values = self.kv[turn, head, :, lanes.value_register :].astype(shape.compute_dtype)
        logits = multiply(self.q[q_turn, head], keys, 1) * self.refs.scales[self.first_head + head]
        if options.logit_softcap is not None:
            cap = options.logit_softcap
            logits = cap * jnp.tanh(logits * (1.0 / cap))
        if is_seen is not None:
            logits = jnp.where(is_seen, logits, UNSEEN)
        old_top = self.top[head]
        top = jnp.maximum(old_top, logits.max(axis=1, keepdims=True))
        weights = jnp.exp(logits - top[:, :1])
        if is_seen is not None:
            weights = jnp.where(is_seen, weights, 0.0)
        decay = jnp.exp(old_top - top)
        self.top[head] = top
        self.total[head] = decay * self.total[head] + weights.sum(axis=1, keepdims=True)
        added = multiply(weights.astype(shape.compute_dtype), values, 0)
        self.sums[head] = decay[:, :1] * self.sums[head] + added

    def end(self, q_turn: jax.Array) -> None:
        def one_head(head: jax.Array, _: None) -> None:
            total = self.total[head][:, :1]
            average = self.sums[head] / jnp.where(total > 0, total, 1.0)
            average *= self.refs.scales[self.shape.call.num_kv_heads + self.first_head + head]
            self.out[q_turn, head] = average.astype(self.shape.out_dtype)

        jax.lax.fori_loop(0, self.shape.kv_heads, one_head, None)


def turn_of(count: jax.Array) -> jax.Array:
    """Which buffer of a pair."""
    return count & 1


def multiply(x: jax.Array, y: jax.Array, contracted: int) -> jax.Array:
    """``x @ y``, or ``x @ y.T`` for ``contracted = 1``, summed in float32."""
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        x,
        y,
        (((1,), (contracted,)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )
