"""How rows fall into blocks of queries and blocks of positions, as a TPU kernel walks over them."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.nonnegative import divide, divide_up
from pallas_kernels.paging.options import Options


class Step(NamedTuple):
    """What is computed next: block ``block`` for queries ``chunk`` of row ``row`` (all int32)."""

    row: jax.Array
    chunk: jax.Array
    block: jax.Array


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A chunk is ``tokens`` queries of a row, a block is ``positions`` of its positions; the last
    of each may reach beyond the row. ``refs``: the arrays of the kernel, with those of
    ``tpu_rows``."""

    options: Options
    refs: Any
    tokens: int
    positions: int

    def first_new(self, row: jax.Array) -> jax.Array:
        """The position of the first query."""
        return self.refs.kv_len_S[row] - self.refs.q_len_S[row]

    def num_chunks(self, row: jax.Array) -> jax.Array:
        return divide_up(self.refs.q_len_S[row], self.tokens)

    def seen(self, row: jax.Array, chunk: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The first position that a chunk can see, and the end of those."""
        options, kv_len = self.options, self.refs.kv_len_S[row]
        first_q = self.first_new(row) + chunk * self.tokens
        first, last = jnp.int32(0), kv_len
        if options.causal:
            last = jnp.minimum(first_q + self.tokens, kv_len)
        if options.sliding_window is not None:
            first = jnp.maximum(first_q - (options.sliding_window - 1), 0)
        return first, last

    def seen_blocks(self, row: jax.Array, chunk: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The first block that a chunk can see a position of, and the end of those."""
        first, last = self.seen(row, chunk)
        return divide(first, self.positions), divide_up(last, self.positions)


def turn_of(count: jax.Array) -> jax.Array:
    """Which buffer of a pair it is whose turn comes, after so many."""
    return count & 1
