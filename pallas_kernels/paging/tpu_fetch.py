"""Blocks of positions on their way from the pages to a TPU kernel, one ahead of what it computes.

A block is asked for page by page, and only those pages of it that its queries can see. When it has
arrived, what was not asked for, or belongs to nobody, is made zero.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.nonnegative import divide, divide_up
from pallas_kernels.paging.options import Options
from pallas_kernels.paging.tpu_blocks import Blocks, Step, turn_of
from pallas_kernels.paging.tpu_registers import LANES, rows_of
from pallas_kernels.paging.tpu_words import put_where, words_where

MAX_PAGES = 32
"""Pages of a block: one bit each in an int32 says which were fetched."""


class Shape(Protocol):
    """What must be known of a kernel to fetch for it. ``merges``: new positions take part without
    being in the pages. ``counts``: it tells how many pages it fetched."""

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


def scratch(table: Any) -> dict[str, Any]:
    """The memory of a ``Fetch`` that is the same for all: all but ``kv`` and ``new``."""
    pair = pltpu.SemaphoreType.DMA((2,))
    return {
        "table": pltpu.SMEM((2, *table.shape[1:]), jnp.int32),
        "fetched": pltpu.SMEM((2, 2), jnp.int32),
        "table_semaphores": pair,
        "kv_semaphores": pair,
        "new_semaphores": pair,
    }


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """The copies of blocks to ``kv``, and of rows of the page table to ``table``.

    All are pairs of buffers: one is computed with while the other is filled. ``kv`` and ``new`` are
    ``[2, *heads, positions of a block, lanes]``. ``fetched[turn]`` holds the pages that were asked
    for: a bit each, and their number.
    """

    shape: Shape
    refs: Any
    blocks: Blocks
    table: Any
    fetched: Any
    kv: Any
    new: Any
    table_semaphores: Any
    kv_semaphores: Any
    new_semaphores: Any

    def table_copy(self, row: jax.Array) -> Any:
        """The copy of a row's pages to its turn of ``table``."""
        turn = turn_of(row)
        source = self.refs.table.at[self.refs.slot_S[row]]
        return pltpu.make_async_copy(source, self.table.at[turn], self.table_semaphores.at[turn])

    def start(self, step: Step, turn: jax.Array) -> None:
        """Asks for the pages of a block that its queries can see. Page 0 is no page."""
        first, last = self.blocks.seen(step.row, step.chunk)
        base = step.block * self.blocks.positions
        first_page = jnp.int32(0)
        if self.shape.options.sliding_window is not None:
            first_page = divide(jnp.maximum(first - base, 0), self.shape.page_size)
        last_page = jnp.minimum(divide_up(last - base, self.shape.page_size), self.num_pages)

        def one_page(nth: jax.Array, found: Any) -> Any:
            bits, count = found
            entry = step.block * self.num_pages + nth
            page = self.table[
                turn_of(step.row), divide(entry, LANES), jax.lax.rem(entry, jnp.int32(LANES))
            ]

            @pl.when(page > 0)
            def _() -> None:
                self._page_copy(page, nth, turn).start()

            is_page = jnp.where(page > 0, jnp.int32(1), jnp.int32(0))
            return bits | jax.lax.shift_left(is_page, nth), count + is_page

        found = (jnp.int32(0), jnp.int32(0))
        bits, count = jax.lax.fori_loop(first_page, last_page, one_page, found)
        self.fetched[turn, 0] = bits
        self.fetched[turn, 1] = count
        if self.shape.counts:
            self.refs.num_fetched_1[0] += count
        if self.shape.merges:

            @pl.when(self._has_new(step))
            def _() -> None:
                self._new_copy(step, turn).start()

    def wait(self, step: Step, turn: jax.Array) -> None:
        """Waits for a block, puts new positions in if they are not in the pages, and makes zeros of
        all that was not fetched or is beyond the row: it may be NaN."""
        kv_len, base = self.refs.kv_len_S[step.row], step.block * self.blocks.positions
        matrix = (self.blocks.positions, self.kv.shape[-1], self.shape.pages_dtype)

        def one_page(_: jax.Array, none: None) -> None:
            # Any page will do: all have the same size, and it is that which is waited for.
            self._page_copy(jnp.int32(0), jnp.int32(0), turn).wait()

        jax.lax.fori_loop(0, self.fetched[turn, 1], one_page, None)
        if self.shape.merges:

            @pl.when(self._has_new(step))
            def _() -> None:
                self._new_copy(step, turn).wait()
                first_new = self.blocks.first_new(step.row)
                is_new = words_where(
                    lambda nth: (nth + base >= first_new) & (nth + base < kv_len), *matrix
                )
                for place in self._matrices(turn):
                    put_where(is_new, self.kv.at[place], self.new[place])

        bits = self.fetched[turn, 0]

        @pl.when((bits != self.all_bits) | (base + self.blocks.positions > kv_len))
        def _() -> None:
            is_nothing = words_where(
                lambda nth: jnp.logical_not(self.is_fetched(bits, nth) & (nth + base < kv_len)),
                *matrix,
            )
            for place in self._matrices(turn):
                put_where(is_nothing, self.kv.at[place], None)

    @property
    def num_pages(self) -> int:
        """The pages of a block."""
        return self.blocks.positions // self.shape.page_size

    @property
    def all_bits(self) -> int:
        """The bits of ``fetched`` where no page of a block is missing."""
        return (1 << self.num_pages) - 1 if self.num_pages < 32 else -1

    def is_fetched(self, bits: jax.Array, nth: jax.Array) -> jax.Array:
        """Whether the page of each position of a block was fetched."""
        page = jax.lax.shift_right_logical(nth, jnp.int32(self.shape.page_size.bit_length() - 1))
        return (jax.lax.shift_right_logical(jnp.broadcast_to(bits, nth.shape), page) & 1) == 1

    def _page_copy(self, page: jax.Array, nth: jax.Array, turn: jax.Array) -> Any:
        size = self.shape.page_size
        place = pl.ds(pl.multiple_of(nth * size, size), size)
        target = self.kv.at[turn, ..., place, :]
        return pltpu.make_async_copy(self.refs.pages.at[page], target, self.kv_semaphores.at[turn])

    def _new_copy(self, step: Step, turn: jax.Array) -> Any:
        """The new positions as they would lie in this block, and around them whatever there is."""
        tile, size = rows_of(self.shape.pages_dtype), self.blocks.positions
        first_tile = divide(self.blocks.first_new(step.row), tile) * tile
        begin = self.refs.new_start_S[step.row] + step.block * size - first_tile
        source = self.refs.new.at[..., pl.ds(pl.multiple_of(begin, tile), size), :]
        return pltpu.make_async_copy(source, self.new.at[turn], self.new_semaphores.at[turn])

    def _has_new(self, step: Step) -> jax.Array:
        return (step.block + 1) * self.blocks.positions > self.blocks.first_new(step.row)

    def _matrices(self, turn: jax.Array) -> Iterator[tuple[Any, ...]]:
        """Where the matrices of positions are in a turn of ``kv``: one for each head that has its
        own."""
        return ((turn, *head) for head in np.ndindex(*self.kv.shape[1:-2]))
