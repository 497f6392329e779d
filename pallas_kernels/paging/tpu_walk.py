"""The walk of a TPU kernel over rows, their queries and their pages, with what comes next on its
way.

What the blocks are is ``tpu_blocks.py``, how they come ``tpu_fetch.py``, what is made of them
``tpu_online_softmax.py``. Which products make the logits, and how queries and results are copied,
is for the operation to say.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.paging import tpu_fetch, tpu_online_softmax
from pallas_kernels.paging.tpu_blocks import Blocks, Step, turn_of
from pallas_kernels.paging.tpu_fetch import Fetch
from pallas_kernels.paging.tpu_online_softmax import OnlineSoftmax

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
    return {
        **tpu_fetch.scratch(table),
        **tpu_online_softmax.scratch(rows, value_width),
        "q_semaphores": pair,
        "out_semaphores": pair,
    }


@dataclass(frozen=True, kw_only=True)
class Walk:
    """The loops over rows, blocks of queries and blocks of positions.

    ``q`` and ``out`` are pairs of buffers: one is computed with while the other is filled, or
    emptied. ``shape``: what the kernel is compiled for. ``refs``: its arrays.
    """

    shape: Any
    refs: Any
    blocks: Blocks
    fetch: Fetch
    softmax: OnlineSoftmax
    q: Any
    out: Any
    q_semaphores: Any
    out_semaphores: Any

    @classmethod
    def in_memory(
        cls,
        shape: Any,
        refs: Any,
        blocks: Blocks,
        *,
        q: Any,
        out: Any,
        q_semaphores: Any,
        out_semaphores: Any,
        top: Any,
        total: Any,
        sums: Any,
        **of_fetch: Any,
    ) -> Self:
        """A walk in the memory that ``scratch`` names, and ``q``, ``kv``, ``new`` and ``out``."""
        return cls(
            shape=shape,
            refs=refs,
            blocks=blocks,
            fetch=Fetch(shape=shape, refs=refs, blocks=blocks, **of_fetch),
            softmax=OnlineSoftmax(top=top, total=total, sums=sums),
            q=q,
            out=out,
            q_semaphores=q_semaphores,
            out_semaphores=out_semaphores,
        )

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

    def begin(self) -> None:
        """Empties the softmax."""
        self.softmax.begin()

    def add(self, turn: jax.Array, q_turn: jax.Array, is_seen: jax.Array | None) -> None:
        """Adds a block to the softmax; ``is_seen`` None: all of it."""
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
            self.fetch.table_copy(first).start()
            self.fetch.table_copy(first).wait()
            begin = Step(first, none, self.blocks.seen_blocks(first, none)[0])
            self.copy_queries(begin, none, start)
            self.fetch.start(begin, none)

            def one_row(row: jax.Array, done: Any) -> Any:
                # The row before is finished, so the buffer of its table is free.
                @pl.when(row + 1 < last)
                def _() -> None:
                    self.fetch.table_copy(row + 1).start()

                def one_chunk(chunk: jax.Array, done: Any) -> Any:
                    return self._one_chunk(Step(row, chunk, none), last, *done)

                return jax.lax.fori_loop(0, self.blocks.num_chunks(row), one_chunk, done)

            _, num_chunks = jax.lax.fori_loop(first, last, one_row, (none, none))
            end = Step(last - 1, self.blocks.num_chunks(last - 1) - 1, none)
            self.copy_out(end, num_chunks - 1, wait)

    def _one_chunk(
        self, step: Step, last: jax.Array, num_blocks: jax.Array, num_chunks: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """All blocks for one block of queries.

        The numbers of blocks and chunks done say which buffers are whose turn.
        """
        first_block, last_block = self.blocks.seen_blocks(step.row, step.chunk)
        self.begin()

        def one_block(block: jax.Array, num_blocks: jax.Array) -> jax.Array:
            here = Step(step.row, step.chunk, block)
            self._prefetch(here, block + 1 < last_block, last, num_blocks + 1, num_chunks + 1)

            @pl.when(block == first_block)
            def _() -> None:
                self.copy_queries(here, num_chunks, wait)

            self.fetch.wait(here, turn_of(num_blocks))
            self._compute(here, turn_of(num_blocks), turn_of(num_chunks))
            return num_blocks + 1

        num_blocks = jax.lax.fori_loop(first_block, last_block, one_block, num_blocks)
        self.end(turn_of(num_chunks))

        # One result at a time: the other buffer must be empty when its turn comes, and where a
        # block reaches beyond its row, the next row comes after it.
        @pl.when(num_chunks > 0)
        def _() -> None:
            is_same_row = step.chunk > 0
            row = jnp.where(is_same_row, step.row, step.row - 1)
            chunk = jnp.where(is_same_row, step.chunk, self.blocks.num_chunks(row)) - 1
            self.copy_out(Step(row, chunk, step.block), num_chunks - 1, wait)

        self.copy_out(step, num_chunks, start)
        return num_blocks, num_chunks + 1

    def _prefetch(
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
            self.fetch.start(Step(step.row, step.chunk, step.block + 1), turn)

        is_same_row = step.chunk + 1 < self.blocks.num_chunks(step.row)
        is_last = jnp.logical_not(is_same_row) & (step.row + 1 >= last)

        @pl.when(jnp.logical_not(is_same_chunk | is_last))
        def _() -> None:
            row = jnp.where(is_same_row, step.row, step.row + 1)
            chunk = jnp.where(is_same_row, step.chunk + 1, 0)

            @pl.when(jnp.logical_not(is_same_row))
            def _() -> None:
                self.fetch.table_copy(row).wait()

            following = Step(row, chunk, self.blocks.seen_blocks(row, chunk)[0])
            self.copy_queries(following, num_chunks, start)
            self.fetch.start(following, turn)

    def _compute(self, step: Step, turn: jax.Array, q_turn: jax.Array) -> None:
        """Adds a block, under a mask only where some query does not see all of it."""
        options, blocks, fetch = self.shape.options, self.blocks, self.fetch
        kv_len, bits = self.refs.kv_len_S[step.row], fetch.fetched[turn, 0]
        first_key = step.block * blocks.positions
        last_key = first_key + (blocks.positions - 1)
        first_q = blocks.first_new(step.row) + step.chunk * blocks.tokens
        sees_all = (bits == fetch.all_bits) & (last_key < kv_len)
        if options.causal:
            sees_all &= last_key <= first_q
        if options.sliding_window is not None:
            last_q = first_q + (blocks.tokens - 1)
            sees_all &= first_key > last_q - options.sliding_window

        def is_seen() -> jax.Array:
            nth, token = self.places()
            seen = fetch.is_fetched(bits, nth) & (nth + first_key < kv_len)
            if options.causal:
                seen &= nth + first_key <= first_q + token
            if options.sliding_window is not None:
                seen &= nth + first_key > first_q + token - options.sliding_window
            return seen.reshape(-1, blocks.positions)

        @pl.when(sees_all)
        def _() -> None:
            self.add(turn, q_turn, None)

        @pl.when(jnp.logical_not(sees_all))
        def _() -> None:
            self.add(turn, q_turn, is_seen())
