"""Attention at full size against its meaning: tokens drawn from a batch, each a row by itself.

No row knows of another, and no token of those behind it. So a token whose row is in the pages has
the same result alone, and the reference, which takes a token's whole row at a time, is asked for no
more of them than are drawn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.drawn import drawn
from pallas_kernels.paging.pool import Pages, gather_pages
from pallas_kernels.paging.specs import PagedSpec

CHUNK = 128
"""Pages that are compared at a time."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the tokens of a batch are. A padding token has length 0 and page 0.

    ``kv_len_T``: what its row holds up to it. ``page_table_TM``: the pages of its row.
    """

    kv_len_T: np.ndarray
    page_table_TM: np.ndarray
    page_T: np.ndarray
    offset_T: np.ndarray


def places_of(spec: PagedSpec, page_table_SM: np.ndarray) -> Places:
    """Of all tokens of a spec that was described with this table."""
    row_T, kv_len_T = np.zeros((2, spec.tokens), np.int32)
    start = 0
    for row, (new, length) in enumerate(spec.rows):
        row_T[start : start + new] = row
        kv_len_T[start : start + new] = np.arange(length - new, length) + 1
        start += new
    position_T = np.maximum(kv_len_T - 1, 0)
    longest = -(-max(length for _, length in spec.rows) // spec.page_size)
    page_table_TM = np.where(kv_len_T[:, None] > 0, page_table_SM[row_T, :longest], 0)
    page_T = page_table_TM[np.arange(spec.tokens), position_T // spec.page_size]
    return Places(
        kv_len_T=kv_len_T,
        page_table_TM=page_table_TM,
        page_T=page_T,
        offset_T=position_T % spec.page_size,
    )


def drawn_tokens(spec: PagedSpec) -> np.ndarray:
    """Indices of those that are checked, of each row and of the padding."""
    new = [new for new, _ in spec.rows]
    return drawn([*new, spec.tokens - sum(new)])


def attend_alone(
    attend: Callable[..., jax.Array],
    queries: tuple[jax.Array, ...],
    pages: Pages,
    places: Places,
    token_n: np.ndarray,
) -> np.ndarray:
    """Results of tokens ``token_n``, one after the other.

    ``attend(queries, parts, rows)`` has the queries of one token (``[1, ...]``, float32), what the
    pages of its row hold (``[M, page_size, ...]``), and the arguments that describe a batch of it
    alone, with ``parts`` as pages 1..M.
    """

    @jax.jit
    def all_tokens(pages: Pages, *tokens: Any) -> jax.Array:
        def one(token: tuple[Any, jax.Array, jax.Array]) -> jax.Array:
            queries, page_M, kv_len = token
            alone = tuple(x[None].astype(jnp.float32) for x in queries)
            return attend(alone, gather_pages(pages, page_M), _row_of(kv_len, page_M.size))[0]

        return jax.lax.map(one, tokens)

    queries_n = tuple(x[token_n] for x in queries)
    rows = (jnp.asarray(places.page_table_TM[token_n]), jnp.asarray(places.kv_len_T[token_n]))
    return np.asarray(all_tokens(pages, queries_n, *rows))


def _row_of(kv_len: jax.Array, num_pages: int) -> tuple[jax.Array, ...]:
    """Lengths, table, borders and distribution of a batch of one token."""
    table_1M = jnp.arange(1, num_pages + 1, dtype=jnp.int32)[None]
    ends = (jnp.asarray(x, jnp.int32) for x in ([0, 1], [0, 0, 1]))
    return (kv_len[None], table_1M, *ends)


def count_wrong(before: Pages, after: Pages, new: tuple[jax.Array, ...], places: Places) -> int:
    """Numbers in pages 1.. that are not those before, nor ``new`` ones (``[T, ...]``, rounded to
    the dtype of the pages) where these belong."""
    page_T, offset_T = jnp.asarray(places.page_T), jnp.asarray(places.offset_T)
    counts = [
        _count_wrong(before, after, new, page_T, offset_T, jnp.int32(first))
        for first in range(1, before.num_pages, CHUNK)
    ]
    return sum(int(count) for count in counts)


@jax.jit
def _count_wrong(
    before: Pages,
    after: Pages,
    new: tuple[jax.Array, ...],
    page_T: jax.Array,
    offset_T: jax.Array,
    first: jax.Array,
) -> jax.Array:
    ids_n = first + jnp.arange(CHUNK, dtype=jnp.int32)
    is_here_T = (page_T >= first) & (page_T < first + CHUNK)
    place_T = jnp.where(is_here_T, page_T - first, jnp.int32(CHUNK))
    count = jnp.int32(0)
    for was, now, x in zip(
        gather_pages(before, ids_n), gather_pages(after, ids_n), new, strict=True
    ):
        # Float32 holds each number of the dtypes of pages.
        expected = was.astype(jnp.float32)
        expected = expected.at[place_T, offset_T].set(x.astype(jnp.float32), mode="drop")
        count += (now.astype(jnp.float32) != expected).sum(dtype=jnp.int32)
    return count
