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

from pallas_kernels.latent_attention.tpu_tuning import WRITES
from pallas_kernels.paging import tpu_walk
from pallas_kernels.paging.options import Options
from pallas_kernels.paging.tpu_blocks import Blocks, Step, turn_of
from pallas_kernels.paging.tpu_online_softmax import multiply
from pallas_kernels.paging.tpu_registers import LANES, align, rows_of
from pallas_kernels.paging.tpu_walk import Act, Walk
from pallas_kernels.paging.tpu_writes import write_tiles


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
    def counts(self) -> bool:
        return True

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
        write_tiles(refs, shape.pages_dtype, WRITES)
    num_short, num_rows = refs.counts_2[0], refs.counts_2[1]
    _attend(shape, refs, jnp.int32(0), num_short, shape.short)
    if not only_short:
        _attend(shape, refs, num_short, num_rows, shape.long)


def _attend(shape: Shape, refs: Refs, first: jax.Array, last: jax.Array, block: Block) -> None:
    """Rows ``first`` to ``last`` (excluded)."""
    rows, positions = block.tokens * shape.num_heads, block.pages * shape.page_size
    blocks = Blocks(options=shape.options, refs=refs, tokens=block.tokens, positions=positions)

    def scoped(**memory: Any) -> None:
        _Walk.in_memory(shape, refs, blocks, **memory).run(first, last)

    latents = (2, positions, shape.width)
    pl.run_scoped(
        scoped,
        q=tuple(pltpu.VMEM((2, rows, part.width), shape.compute_dtype) for part in shape.parts),
        kv=pltpu.VMEM(latents, shape.pages_dtype),
        new=pltpu.VMEM(latents if shape.merges else (1, shape.tile, LANES), shape.pages_dtype),
        out=pltpu.VMEM((2, rows, shape.value_width), shape.out_dtype),
        **tpu_walk.scratch(refs.table, (rows,), shape.value_width),
    )


@dataclass(frozen=True, kw_only=True)
class _Walk(Walk):
    """All heads of a token share one matrix of latents, whose first lanes are the values; queries
    are the ``shape.parts``."""

    shape: Shape
    refs: Refs

    def for_tokens(self, step: Step, act: Callable[[Any, Any], None]) -> None:
        """Calls ``act`` with rows of all queries and rows of a block, for pieces that together are
        the tokens of a block: powers of two, for the size of a copy is compiled in."""
        heads, first = self.shape.num_heads, step.chunk * self.blocks.tokens
        num_tokens = jnp.minimum(self.refs.q_len_S[step.row] - first, self.blocks.tokens)
        first += self.refs.first_token_S[step.row]

        def one_piece(size: int) -> None:
            done = num_tokens & -(2 * size) if size < self.blocks.tokens else jnp.int32(0)
            here, there = (
                pl.ds(pl.multiple_of(token * heads, heads), size * heads)
                for token in (first + done, done)
            )
            act(here, there)

        if self.blocks.tokens == 1:
            one_piece(1)
            return
        for bit in range(self.blocks.tokens.bit_length()):

            @pl.when((num_tokens >> bit) & 1 == 1)
            def _(size: int = 1 << bit) -> None:
                one_piece(size)

    def copy_queries(self, step: Step, count: jax.Array, act: Act) -> None:
        turn = turn_of(count)

        def one_piece(here: Any, there: Any) -> None:
            for source, target in zip(self.refs.queries, self.q, strict=True):
                act(
                    pltpu.make_async_copy(
                        source.at[here, :], target.at[turn, there, :], self.q_semaphores.at[turn]
                    )
                )

        self.for_tokens(step, one_piece)

    def copy_out(self, step: Step, count: jax.Array, act: Act) -> None:
        turn = turn_of(count)

        def one_piece(here: Any, there: Any) -> None:
            source, target = self.out.at[turn, there, :], self.refs.out.at[here, :]
            act(pltpu.make_async_copy(source, target, self.out_semaphores.at[turn]))

        self.for_tokens(step, one_piece)

    def places(self) -> tuple[jax.Array, jax.Array]:
        logits = (self.blocks.tokens, self.shape.num_heads, self.blocks.positions)
        nth, token = (jax.lax.broadcasted_iota(jnp.int32, logits, axis) for axis in (2, 0))
        return nth, token

    def add(self, turn: jax.Array, q_turn: jax.Array, is_seen: jax.Array | None) -> None:
        shape = self.shape
        latents = self.fetch.kv[turn].astype(shape.compute_dtype)
        products = [
            multiply(q[q_turn], latents[:, part.start : part.start + part.width], 1)
            for q, part in zip(self.q, shape.parts, strict=True)
        ]
        logits = functools.reduce(jnp.add, products) * shape.options.scale
        self.softmax.add(..., logits, latents[:, : shape.value_width], is_seen)

    def end(self, q_turn: jax.Array) -> None:
        self.out[q_turn] = self.softmax.average(...).astype(self.shape.out_dtype)
