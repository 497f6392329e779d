"""The walk of a TPU kernel over rows and their pages, with what comes next on its way.

The copies and the online softmax (arXiv 1805.02867) are here; which products make the logits, and
how queries and results are copied, is for the operation to say.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.paging.options import Options
from pallas_kernels.paging.rows import divide, divide_up
from pallas_kernels.paging.tpu_registers import LANES, rows_of
from pallas_kernels.paging.tpu_words import put_where, words_where

MAX_PAGES = 32
"""Pages of a block: one bit each in an int32 says which were fetched."""
UNSEEN = -1e30
"""The logit of what a query must not see: finite, so that no difference of two is NaN."""


class Shape(Protocol):
    """What a walk must know of its kernel. ``merges``: new positions take part without being in the
    pages. ``counts``: it tells how many pages it fetched."""

    @property
    def options(self) -> Options: ...

    @property
    def page_size(self) -> int: ...

    @property
    def pages_dtype(self) -> np.dtype: ...

    @property
    def merges(self) -> bool: ...

    @property
    def counts(self) -> bool: ...


class Step(NamedTuple):
    """What is computed next: block ``block`` for queries ``chunk`` of row ``row`` (all int32)."""

    row: jax.Array
    chunk: jax.Array
    block: jax.Array


Act = Callable[[Any], None]
"""``start`` or ``wait``: what is to be done with a copy."""


def start(copy: Any) -> None:
    copy.start()


def wait(copy: Any) -> None:
    copy.wait()


def scratch(table: Any, rows: tuple[int, ...], value_width: int) -> dict[str, Any]:
    """The memory of a ``Walk`` that is the same for all: all but ``q``, ``kv``, ``new``, ``out``.

    ``rows``: those of a block of queries, behind the heads that have matrices of their own.
    """
    pair = pltpu.SemaphoreType.DMA((2,))
    names = ("table", "q", "kv", "new", "out")
    return {
        "table": pltpu.SMEM((2, *table.shape[1:]), jnp.int32),
        "fetched": pltpu.SMEM((2, 2), jnp.int32),
        "top": pltpu.VMEM((*rows, LANES), jnp.float32),
        "total": pltpu.VMEM((*rows, LANES), jnp.float32),
        "sums": pltpu.VMEM((*rows, value_width), jnp.float32),
        **{f"{name}_semaphores": pair for name in names},
    }


@dataclass(frozen=True)
class Walk:
    """The loops over rows, blocks of queries and blocks of positions, and their buffers.

    Of the pairs of buffers, one is computed with while the other is filled (or emptied, for
    ``out``). ``fetched[buffer]`` holds the pages that were asked for: a bit each, and their number.
    ``kv`` and ``new`` are ``[2, *heads, block_positions, lanes]``. ``refs``: the arrays of the
    kernel, with those of ``tpu_rows``.
    """

    shape: Any
    refs: Any
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

    # What the operation says.

    def copy_queries(self, step: Step, count: jax.Array, act: Act) -> None:
        """Starts the copy of a block of queries to its turn of ``q``, or waits for it."""
        raise NotImplementedError

    def copy_out(self, step: Step, count: jax.Array, act: Act) -> None:
        """Starts the copy of a block of results from its turn of ``out``, or waits for it."""
        raise NotImplementedError

    def places(self) -> tuple[jax.Array, jax.Array]:
        """For every logit of a block, which position of it and which token it is for."""
        raise NotImplementedError

    def add(self, turn: jax.Array, q_turn: jax.Array, is_seen: jax.Array | None) -> None:
        """Adds a block to the softmax, by ``accumulate``."""
        raise NotImplementedError

    def end(self, q_turn: jax.Array) -> None:
        """Puts the averages into ``out``."""
        raise NotImplementedError

    # The loops.

    def run(self, first: jax.Array, last: jax.Array) -> None:
        """Rows ``first`` to ``last`` (excluded), in the order of work."""

        @pl.when(first < last)
        def _() -> None:
            none = jnp.int32(0)
            self.table_copy(first).start()
            self.table_copy(first).wait()
            begin = Step(first, none, self.blocks(first, none)[0])
            self.copy_queries(begin, none, start)
            self.fetch(begin, none)

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
            self.copy_out(end, num_chunks - 1, wait)

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
                self.copy_queries(here, num_chunks, wait)

            self.arrive(here, turn_of(num_blocks))
            self.compute(here, turn_of(num_blocks), turn_of(num_chunks))
            return num_blocks + 1

        num_blocks = jax.lax.fori_loop(first_block, last_block, one_block, num_blocks)
        self.end(turn_of(num_chunks))

        # One result at a time: the other buffer must be empty when its turn comes, and where a
        # block reaches beyond its row, the next row comes after it.
        @pl.when(num_chunks > 0)
        def _() -> None:
            is_same_row = step.chunk > 0
            row = jnp.where(is_same_row, step.row, step.row - 1)
            chunk = jnp.where(is_same_row, step.chunk, self.chunks(row)) - 1
            self.copy_out(Step(row, chunk, step.block), num_chunks - 1, wait)

        self.copy_out(step, num_chunks, start)
        return num_blocks, num_chunks + 1

    # Where things are.

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

    def page_copy(self, page: jax.Array, nth: jax.Array, turn: jax.Array) -> Any:
        size = self.shape.page_size
        place = pl.ds(pl.multiple_of(nth * size, size), size)
        target = self.kv.at[turn, ..., place, :]
        return pltpu.make_async_copy(self.refs.pages.at[page], target, self.kv_semaphores.at[turn])

    def new_copy(self, step: Step, turn: jax.Array) -> Any:
        """The new positions as they would lie in this block, and around them whatever there is."""
        tile, size = rows_of(self.shape.pages_dtype), self.block_positions
        first_tile = divide(self.first_new(step.row), tile) * tile
        begin = self.refs.new_start_S[step.row] + step.block * size - first_tile
        source = self.refs.new.at[..., pl.ds(pl.multiple_of(begin, tile), size), :]
        return pltpu.make_async_copy(source, self.new.at[turn], self.new_semaphores.at[turn])

    def has_new(self, step: Step) -> jax.Array:
        return (step.block + 1) * self.block_positions > self.first_new(step.row)

    def fetch(self, step: Step, turn: jax.Array) -> None:
        """Asks for the pages of a block that its queries can see. Page 0 is no page."""
        first, last = self.positions(step.row, step.chunk)
        base = step.block * self.block_positions
        first_page = jnp.int32(0)
        if self.shape.options.sliding_window is not None:
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
            self.copy_queries(following, num_chunks, start)
            self.fetch(following, turn)

    def arrive(self, step: Step, turn: jax.Array) -> None:
        """Waits for a block, puts new positions in if they are not in the pages, and makes zeros of
        all that was not fetched or is beyond the row: it may be NaN."""
        kv_len, base = self.refs.kv_len_S[step.row], step.block * self.block_positions
        matrix = (self.block_positions, self.kv.shape[-1], self.shape.pages_dtype)

        def one_page(_: jax.Array, none: None) -> None:
            # Any page will do: all have the same size, and it is that which is waited for.
            self.page_copy(jnp.int32(0), jnp.int32(0), turn).wait()

        jax.lax.fori_loop(0, self.fetched[turn, 1], one_page, None)
        if self.shape.merges:

            @pl.when(self.has_new(step))
            def _() -> None:
                self.new_copy(step, turn).wait()
                first_new = self.first_new(step.row)
                is_new = words_where(
                    lambda nth: (nth + base >= first_new) & (nth + base < kv_len), *matrix
                )
                for place in self.matrices(turn):
                    put_where(is_new, self.kv.at[place], self.new[place])

        bits = self.fetched[turn, 0]

        @pl.when((bits != self.all_bits) | (base + self.block_positions > kv_len))
        def _() -> None:
            is_nothing = words_where(
                lambda nth: jnp.logical_not(self.is_fetched(bits, nth) & (nth + base < kv_len)),
                *matrix,
            )
            for place in self.matrices(turn):
                put_where(is_nothing, self.kv.at[place], None)

    def matrices(self, turn: jax.Array) -> Iterator[tuple[Any, ...]]:
        """Where the matrices of positions are in a turn of ``kv``: one for each head that has its
        own."""
        return ((turn, *head) for head in np.ndindex(*self.kv.shape[1:-2]))

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
        self.top[...] = jnp.full_like(self.top, UNSEEN)
        self.total[...] = jnp.zeros_like(self.total)

    def compute(self, step: Step, turn: jax.Array, q_turn: jax.Array) -> None:
        options = self.shape.options
        kv_len, bits = self.refs.kv_len_S[step.row], self.fetched[turn, 0]
        first_key = step.block * self.block_positions
        last_key = first_key + (self.block_positions - 1)
        first_q = self.first_new(step.row) + step.chunk * self.block_tokens
        sees_all = (bits == self.all_bits) & (last_key < kv_len)
        if options.causal:
            sees_all &= last_key <= first_q
        if options.sliding_window is not None:
            last_q = first_q + (self.block_tokens - 1)
            sees_all &= first_key > last_q - options.sliding_window

        def is_seen() -> jax.Array:
            nth, token = self.places()
            seen = self.is_fetched(bits, nth) & (nth + first_key < kv_len)
            if options.causal:
                seen &= nth + first_key <= first_q + token
            if options.sliding_window is not None:
                seen &= nth + first_key > first_q + token - options.sliding_window
            return seen.reshape(-1, self.block_positions)

        @pl.when(sees_all)
        def _() -> None:
            self.add(turn, q_turn, None)

        @pl.when(jnp.logical_not(sees_all))
        def _() -> None:
            self.add(turn, q_turn, is_seen())

    def accumulate(
        self, place: Any, logits: jax.Array, values: jax.Array, is_seen: jax.Array | None
    ) -> None:
        """Adds a block to the softmax of the matrix of queries at ``place``."""
        if is_seen is not None:
            logits = jnp.where(is_seen, logits, UNSEEN)
        old_top = self.top[place]
        top = jnp.maximum(old_top, logits.max(axis=1, keepdims=True))
        weights = jnp.exp(logits - top[:, :1])
        if is_seen is not None:
            weights = jnp.where(is_seen, weights, 0.0)
        decay = jnp.exp(old_top - top)
        self.top[place] = top
        self.total[place] = decay * self.total[place] + weights.sum(axis=1, keepdims=True)
        added = multiply(weights.astype(values.dtype), values, 0)
        self.sums[place] = decay[:, :1] * self.sums[place] + added

    def average(self, place: Any) -> jax.Array:
        """Of the matrix of queries at ``place``; 0 where nothing was seen."""
        total = self.total[place][:, :1]
        return self.sums[place] / jnp.where(total > 0, total, 1.0)


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
