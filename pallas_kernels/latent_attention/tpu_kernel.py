"""The body of the TPU kernel: its loops, its copies and its arithmetic (see ``tpu.py``)."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.ragged_paged_attention.options import Options
from pallas_kernels.ragged_paged_attention.rows import divide, divide_up
from pallas_kernels.ragged_paged_attention.tpu_kernel import multiply, put_where, turn_of
from pallas_kernels.ragged_paged_attention.tpu_pages import LANES, align, packing_of, rows_of

TILES = 4
"""Tiles of new positions in flight, half of them being read and half being written."""
MAX_PAGES = 32
"""Pages of a block: one bit each in an int32 says which were fetched."""
UNSEEN = -1e30
"""The logit of what a query must not see: finite, so that no difference of two is NaN."""


class Part(NamedTuple):
    """The lanes of a position that one matrix of queries is multiplied with."""

    start: int
    width: int


class Block(NamedTuple):
    """The tokens of a block of queries and the pages of a block of latents."""

    tokens: int
    pages: int


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the kernel is compiled for. ``num_heads`` fill whole registers; ``short`` is for rows
    whose tokens fit into one of its blocks, ``long`` for the others."""

    options: Options
    num_heads: int
    latent_rank: int
    width: int
    page_size: int
    short: Block
    long: Block
    has_new: bool
    compute_dtype: np.dtype
    out_dtype: np.dtype
    pages_dtype: np.dtype

    @property
    def value_width(self) -> int:
        """The registers that hold the latent, and perhaps the beginning of the rotary part."""
        return align(self.latent_rank, LANES)

    @property
    def parts(self) -> tuple[Part, ...]:
        """Latent and rotary part are multiplied apart where registers part them: the queries for
        them then need not be joined in memory."""
        if self.latent_rank % LANES:
            return (Part(0, self.width),)
        return (Part(0, self.latent_rank), Part(self.latent_rank, self.width - self.latent_rank))

    @property
    def most_positions(self) -> int:
        """Positions of the larger block."""
        return max(self.short.pages, self.long.pages) * self.page_size

    @property
    def writes(self) -> bool:
        return self.has_new and self.options.update_kv_cache

    @property
    def merges(self) -> bool:
        """New latents take part without being in the pages."""
        return self.has_new and not self.options.update_kv_cache

    @property
    def tile(self) -> int:
        return rows_of(self.pages_dtype)


class Refs(NamedTuple):
    """The kernel's arrays, in its order; see ``tpu_rows`` for those of int32."""

    counts_2: Any
    slot_S: Any
    first_token_S: Any
    q_len_S: Any
    kv_len_S: Any
    new_start_S: Any
    num_tiles_1: Any
    tile_from_W: Any
    tile_page_W: Any
    tile_row_W: Any
    tile_first_W: Any
    tile_last_W: Any
    table: Any
    new: Any
    queries: tuple[Any, ...]
    pages: Any
    out: Any
    num_fetched_1: Any


def run_kernel(shape: Shape, only_short: bool, refs: Refs) -> None:
    refs.num_fetched_1[0] = 0
    if shape.writes:
        _write(shape, refs)
    num_short, num_rows = refs.counts_2[0], refs.counts_2[1]
    _attend(shape, refs, jnp.int32(0), num_short, shape.short)
    if not only_short:
        _attend(shape, refs, num_short, num_rows, shape.long)


def _write(shape: Shape, refs: Refs) -> None:
    """Brings the tiles that hold new positions, puts these in and writes them back."""
    num_tiles = refs.num_tiles_1[0]

    def scoped(old: Any, new: Any, reading: Any, writing: Any) -> None:
        def place_of(i: jax.Array) -> Any:
            row = pl.multiple_of(refs.tile_row_W[i], shape.tile)
            return refs.pages.at[refs.tile_page_W[i], pl.ds(row, shape.tile), :]

        def reads(i: jax.Array) -> tuple[Any, Any]:
            nth = jax.lax.rem(i, TILES)
            start = pl.multiple_of(refs.tile_from_W[i], shape.tile)
            new_tile = refs.new.at[pl.ds(start, shape.tile), :]
            return (
                pltpu.make_async_copy(place_of(i), old.at[nth], reading.at[nth]),
                pltpu.make_async_copy(new_tile, new.at[nth], reading.at[nth]),
            )

        def write(i: jax.Array) -> Any:
            nth = jax.lax.rem(i, TILES)
            return pltpu.make_async_copy(old.at[nth], place_of(i), writing.at[nth])

        def start_reads(i: jax.Array) -> None:
            @pl.when(i < num_tiles)
            def _() -> None:
                @pl.when(i >= TILES)
                def _() -> None:
                    write(i - TILES).wait()

                for copy in reads(i):
                    copy.start()

        def one_tile(i: jax.Array, _: None) -> None:
            start_reads(i + TILES // 2)
            for copy in reads(i):
                copy.wait()
            nth = jax.lax.rem(i, TILES)
            first, last = refs.tile_first_W[i], refs.tile_last_W[i]
            is_new = words_where(lambda row: (row >= first) & (row < last), shape.tile, shape)
            put_where(is_new, old.at[nth], new[nth])
            write(i).start()

        for ahead in range(TILES // 2):
            start_reads(jnp.int32(ahead))
        jax.lax.fori_loop(0, num_tiles, one_tile, None)
        for behind in range(TILES):
            i = num_tiles - 1 - behind

            @pl.when(i >= 0)
            def _(i: jax.Array = i) -> None:
                write(i).wait()

    tiles = pltpu.VMEM((TILES, shape.tile, shape.width), shape.pages_dtype)
    semaphores = pltpu.SemaphoreType.DMA((TILES,))
    pl.run_scoped(scoped, tiles, tiles, semaphores, semaphores)


def words_where(
    is_chosen: Callable[[jax.Array], jax.Array], num_rows: int, shape: Shape
) -> jax.Array:
    """Masks of bits for ``num_rows`` positions as words of 32 bits, which they share when narrow.

    Choosing among bits works for all dtypes alike, and leaves what is not chosen as it was, be it
    NaN.
    """
    packing = packing_of(shape.pages_dtype)
    bits = 32 // packing
    words = (num_rows // packing, shape.width)
    word = jax.lax.broadcasted_iota(jnp.int32, words, 0)
    mask = jnp.zeros(words, jnp.int32)
    for i in range(packing):
        element = np.array(((1 << bits) - 1) << (bits * i), np.uint32).astype(np.int32)
        mask |= jnp.where(is_chosen(word * packing + i), jnp.int32(element), jnp.int32(0))
    return mask


class Step(NamedTuple):
    """What is computed next: block ``block`` for queries ``chunk`` of row ``row`` (all int32)."""

    row: jax.Array
    chunk: jax.Array
    block: jax.Array


def _attend(shape: Shape, refs: Refs, first: jax.Array, last: jax.Array, block: Block) -> None:
    """Rows ``first`` to ``last`` (excluded)."""
    rows = block.tokens * shape.num_heads

    def scoped(**scratch: Any) -> None:
        _Walk(shape, refs, block, **scratch).run(first, last)

    latents = (2, block.pages * shape.page_size, shape.width)
    pair = pltpu.SemaphoreType.DMA((2,))
    pl.run_scoped(
        scoped,
        table=pltpu.SMEM((2, *refs.table.shape[1:]), jnp.int32),
        fetched=pltpu.SMEM((2, 2), jnp.int32),
        queries=tuple(
            pltpu.VMEM((2, rows, part.width), shape.compute_dtype) for part in shape.parts
        ),
        latents=pltpu.VMEM(latents, shape.pages_dtype),
        new=pltpu.VMEM(latents if shape.merges else (1, shape.tile, LANES), shape.pages_dtype),
        out=pltpu.VMEM((2, rows, shape.value_width), shape.out_dtype),
        top=pltpu.VMEM((rows, LANES), jnp.float32),
        total=pltpu.VMEM((rows, LANES), jnp.float32),
        sums=pltpu.VMEM((rows, shape.value_width), jnp.float32),
        table_semaphores=pair,
        q_semaphores=pair,
        latent_semaphores=pair,
        new_semaphores=pair,
        out_semaphores=pair,
    )


@dataclass(frozen=True)
class _Walk:
    """The loops over rows, blocks of queries and blocks of positions, and their buffers.

    Of the pairs of buffers, one is computed with while the other is filled (or emptied, for
    ``out``). ``fetched[buffer]`` holds the pages that were asked for: a bit each, and their number.
    """

    shape: Shape
    refs: Refs
    block: Block
    table: Any
    fetched: Any
    queries: tuple[Any, ...]
    latents: Any
    new: Any
    out: Any
    top: Any
    total: Any
    sums: Any
    table_semaphores: Any
    q_semaphores: Any
    latent_semaphores: Any
    new_semaphores: Any
    out_semaphores: Any

    def run(self, first: jax.Array, last: jax.Array) -> None:
        @pl.when(first < last)
        def _() -> None:
            none = jnp.int32(0)
            self.table_copy(first).start()
            self.table_copy(first).wait()
            start = Step(first, none, none)
            self.copy_queries(start, none, _start)
            self.fetch(start, none)

            def one_row(row: jax.Array, done: Any) -> Any:
                # The row before is finished, so the buffer of its table is free.
                @pl.when(row + 1 < last)
                def _() -> None:
                    self.table_copy(row + 1).start()

                def one_chunk(chunk: jax.Array, done: Any) -> Any:
                    return self.one_chunk(Step(row, chunk, none), last, *done)

                return jax.lax.fori_loop(0, self.chunks(row), one_chunk, done)

            _, num_chunks = jax.lax.fori_loop(first, last, one_row, (none, none))
            end = Step(last - 1, self.chunks(last - 1) - 1, none)
            self.copy_out(end, num_chunks - 1, _wait)

    def one_chunk(
        self, step: Step, last: jax.Array, num_blocks: jax.Array, num_chunks: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """All blocks for one block of queries.

        The numbers of blocks and chunks done say which buffers are whose turn.
        """
        end = self.num_blocks(step.row, step.chunk)
        self.begin()

        def one_block(block: jax.Array, num_blocks: jax.Array) -> jax.Array:
            here = Step(step.row, step.chunk, block)
            self.prefetch(here, block + 1 < end, last, num_blocks + 1, num_chunks + 1)

            @pl.when(block == 0)
            def _() -> None:
                self.copy_queries(here, num_chunks, _wait)

            self.arrive(here, turn_of(num_blocks))
            self.compute(here, turn_of(num_blocks), turn_of(num_chunks))
            return num_blocks + 1

        num_blocks = jax.lax.fori_loop(0, end, one_block, num_blocks)
        self.end(turn_of(num_chunks))

        # The other buffer must be empty when its turn comes.
        @pl.when(num_chunks > 0)
        def _() -> None:
            is_same_row = step.chunk > 0
            row = jnp.where(is_same_row, step.row, step.row - 1)
            chunk = jnp.where(is_same_row, step.chunk, self.chunks(row)) - 1
            self.copy_out(Step(row, chunk, step.block), num_chunks - 1, _wait)

        self.copy_out(step, num_chunks, _start)
        return num_blocks, num_chunks + 1

    # Where things are.

    @property
    def positions(self) -> int:
        """Positions of a block."""
        return self.block.pages * self.shape.page_size

    def first_new(self, row: jax.Array) -> jax.Array:
        return self.refs.kv_len_S[row] - self.refs.q_len_S[row]

    def chunks(self, row: jax.Array) -> jax.Array:
        """The number of blocks of queries."""
        return divide_up(self.refs.q_len_S[row], self.block.tokens)

    def end_of_seen(self, row: jax.Array, chunk: jax.Array) -> jax.Array:
        """The end of the positions that a block of queries can see."""
        kv_len = self.refs.kv_len_S[row]
        if not self.shape.options.causal:
            return kv_len
        return jnp.minimum(self.first_new(row) + (chunk + 1) * self.block.tokens, kv_len)

    def num_blocks(self, row: jax.Array, chunk: jax.Array) -> jax.Array:
        return divide_up(self.end_of_seen(row, chunk), self.positions)

    # Copies.

    def table_copy(self, row: jax.Array) -> Any:
        turn = turn_of(row)
        source = self.refs.table.at[self.refs.slot_S[row]]
        return pltpu.make_async_copy(source, self.table.at[turn], self.table_semaphores.at[turn])

    def for_tokens(self, step: Step, act: Callable[[Any, Any], None]) -> None:
        """Calls ``act`` with rows of all queries and rows of a block, for pieces that together are
        the tokens of a block: powers of two, for the size of a copy is compiled in."""
        heads, first = self.shape.num_heads, step.chunk * self.block.tokens
        num_tokens = jnp.minimum(self.refs.q_len_S[step.row] - first, self.block.tokens)
        first += self.refs.first_token_S[step.row]

        def one_piece(size: int) -> None:
            done = num_tokens & -(2 * size) if size < self.block.tokens else jnp.int32(0)
            here, there = (
                pl.ds(pl.multiple_of(token * heads, heads), size * heads)
                for token in (first + done, done)
            )
            act(here, there)

        if self.block.tokens == 1:
            one_piece(1)
            return
        for bit in range(self.block.tokens.bit_length()):

            @pl.when((num_tokens >> bit) & 1 == 1)
            def _(size: int = 1 << bit) -> None:
                one_piece(size)

    def copy_queries(self, step: Step, count: jax.Array, act: Callable[[Any], None]) -> None:
        turn = turn_of(count)

        def one_piece(here: Any, there: Any) -> None:
            for source, target in zip(self.refs.queries, self.queries, strict=True):
                act(
                    pltpu.make_async_copy(
                        source.at[here, :], target.at[turn, there, :], self.q_semaphores.at[turn]
                    )
                )

        self.for_tokens(step, one_piece)

    def copy_out(self, step: Step, count: jax.Array, act: Callable[[Any], None]) -> None:
        turn = turn_of(count)

        def one_piece(here: Any, there: Any) -> None:
            source, target = self.out.at[turn, there, :], self.refs.out.at[here, :]
            act(pltpu.make_async_copy(source, target, self.out_semaphores.at[turn]))

        self.for_tokens(step, one_piece)

    def page_copy(self, page: jax.Array, nth: jax.Array, turn: jax.Array) -> Any:
        size = self.shape.page_size
        place = pl.ds(pl.multiple_of(nth * size, size), size)
        target, semaphore = self.latents.at[turn, place, :], self.latent_semaphores.at[turn]
        return pltpu.make_async_copy(self.refs.pages.at[page], target, semaphore)

    def new_copy(self, step: Step, turn: jax.Array) -> Any:
        """The new positions as they would lie in this block, and around them whatever there is."""
        tile, size = self.shape.tile, self.positions
        first_tile = divide(self.first_new(step.row), tile) * tile
        start = self.refs.new_start_S[step.row] + step.block * size - first_tile
        source = self.refs.new.at[pl.ds(pl.multiple_of(start, tile), size), :]
        return pltpu.make_async_copy(source, self.new.at[turn], self.new_semaphores.at[turn])

    def has_new(self, step: Step) -> jax.Array:
        return (step.block + 1) * self.positions > self.first_new(step.row)

    def fetch(self, step: Step, turn: jax.Array) -> None:
        """Asks for the pages of a block that its queries can see. Page 0 is no page."""
        first_page = step.block * self.block.pages
        end = divide_up(self.end_of_seen(step.row, step.chunk), self.shape.page_size)
        num_pages = jnp.minimum(end - first_page, self.block.pages)

        def one_page(nth: jax.Array, found: Any) -> Any:
            bits, count = found
            entry = first_page + nth
            page = self.table[
                turn_of(step.row), divide(entry, LANES), jax.lax.rem(entry, jnp.int32(LANES))
            ]

            @pl.when(page > 0)
            def _() -> None:
                self.page_copy(page, nth, turn).start()

            is_page = jnp.where(page > 0, jnp.int32(1), jnp.int32(0))
            return bits | jax.lax.shift_left(is_page, nth), count + is_page

        bits, count = jax.lax.fori_loop(0, num_pages, one_page, (jnp.int32(0), jnp.int32(0)))
        self.fetched[turn, 0] = bits
        self.fetched[turn, 1] = count
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

            following = Step(row, chunk, jnp.int32(0))
            self.copy_queries(following, num_chunks, _start)
            self.fetch(following, turn)

    def arrive(self, step: Step, turn: jax.Array) -> None:
        """Waits for a block, puts new positions in if they are not in the pages, and makes zeros of
        the values that were not fetched or are beyond the row: they may be NaN."""
        shape, kv_len = self.shape, self.refs.kv_len_S[step.row]
        base = step.block * self.positions

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
                    self.positions,
                    shape,
                )
                put_where(is_new, self.latents.at[turn], self.new[turn])

        bits = self.fetched[turn, 0]

        @pl.when((bits != self.all_bits) | (base + self.positions > kv_len))
        def _() -> None:
            is_nothing = words_where(
                lambda nth: jnp.logical_not(self.is_fetched(bits, nth) & (nth + base < kv_len)),
                self.positions,
                shape,
            )
            put_where(is_nothing, self.latents.at[turn], None)

    @property
    def all_bits(self) -> int:
        return (1 << self.block.pages) - 1 if self.block.pages < 32 else -1

    def is_fetched(self, bits: jax.Array, nth: jax.Array) -> jax.Array:
        """Whether the page of each position of a block was fetched."""
        page = jax.lax.shift_right_logical(nth, jnp.int32(self.shape.page_size.bit_length() - 1))
        return (jax.lax.shift_right_logical(jnp.broadcast_to(bits, nth.shape), page) & 1) == 1

    # The online softmax.

    def begin(self) -> None:
        self.sums[...] = jnp.zeros_like(self.sums)
        self.top[...] = jnp.full_like(self.top, UNSEEN)
        self.total[...] = jnp.zeros_like(self.total)

    def compute(self, step: Step, turn: jax.Array, q_turn: jax.Array) -> None:
        shape, options = self.shape, self.shape.options
        kv_len, bits = self.refs.kv_len_S[step.row], self.fetched[turn, 0]
        first_key = step.block * self.positions
        last_key = first_key + (self.positions - 1)
        first_q = self.first_new(step.row) + step.chunk * self.block.tokens
        sees_all = (bits == self.all_bits) & (last_key < kv_len)
        if options.causal:
            sees_all &= last_key <= first_q

        def is_seen() -> jax.Array:
            logits = (self.block.tokens, shape.num_heads, self.positions)
            nth = jax.lax.broadcasted_iota(jnp.int32, logits, 2)
            seen = self.is_fetched(bits, nth) & (nth + first_key < kv_len)
            if options.causal:
                position = first_q + jax.lax.broadcasted_iota(jnp.int32, logits, 0)
                seen &= nth + first_key <= position
            return seen.reshape(-1, self.positions)

        @pl.when(sees_all)
        def _() -> None:
            self.add(turn, q_turn, None)

        @pl.when(jnp.logical_not(sees_all))
        def _() -> None:
            self.add(turn, q_turn, is_seen())

    def add(self, turn: jax.Array, q_turn: jax.Array, is_seen: jax.Array | None) -> None:
        """Adds a block to the softmax."""
        shape = self.shape
        latents = self.latents[turn].astype(shape.compute_dtype)
        products = [
            multiply(q[q_turn], latents[:, part.start : part.start + part.width], 1)
            for q, part in zip(self.queries, shape.parts, strict=True)
        ]
        logits = functools.reduce(jnp.add, products) * shape.options.scale
        if is_seen is not None:
            logits = jnp.where(is_seen, logits, UNSEEN)
        old_top = self.top[...]
        top = jnp.maximum(old_top, logits.max(axis=1, keepdims=True))
        weights = jnp.exp(logits - top[:, :1])
        if is_seen is not None:
            weights = jnp.where(is_seen, weights, 0.0)
        decay = jnp.exp(old_top - top)
        self.top[...] = top
        self.total[...] = decay * self.total[...] + weights.sum(axis=1, keepdims=True)
        values = latents[:, : shape.value_width]
        added = multiply(weights.astype(shape.compute_dtype), values, 0)
        self.sums[...] = decay[:, :1] * self.sums[...] + added

    def end(self, q_turn: jax.Array) -> None:
        total = self.total[...][:, :1]
        average = self.sums[...] / jnp.where(total > 0, total, 1.0)
        self.out[q_turn] = average.astype(self.shape.out_dtype)


def _start(copy: Any) -> None:
    copy.start()


def _wait(copy: Any) -> None:
    copy.wait()
