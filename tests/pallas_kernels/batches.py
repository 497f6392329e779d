"""Ragged batches, as both attentions over pages take them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

Content = Callable[[int], np.random.Generator]
"""The values of each row, whose own they are, so that a row can move between batches."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The arguments of one call. All memory that no row has written holds NaN."""

    PAGES: ClassVar[str]
    """The argument that is the pool."""
    NEW: ClassVar[tuple[str, str]]
    """The arguments that are written to it."""
    QUERIES: ClassVar[tuple[str, ...]]

    @property
    def arguments(self) -> tuple:
        return tuple(getattr(self, field.name) for field in fields(self))

    def where(self, **changes: Any) -> Self:
        return replace(self, **changes)

    @property
    def pages(self) -> Any:
        return getattr(self, self.PAGES)

    def on(self, pages: Any) -> Self:
        return self.where(**{self.PAGES: pages})

    def without_new(self) -> Self:
        return self.where(**dict.fromkeys(self.NEW))

    def chunk(self, start: int, end: int) -> Self:
        """Tokens ``start`` to ``end`` of the first row, which is alone, and padding."""
        tokens = {name: getattr(self, name) for name in (*self.QUERIES, *self.NEW)}
        return self.where(
            kv_lens_S=self.kv_lens_S.at[0].set(end),
            cu_q_lens_S1=jnp.minimum(self.cu_q_lens_S1, end - start),
            **{
                name: jnp.full_like(x, jnp.nan).at[: end - start].set(x[start:end])
                for name, x in tokens.items()
            },
        )


class Row(NamedTuple):
    """A row that takes part: where its cached positions are, and its new ``tokens``."""

    length: int
    num_cached: int
    page: np.ndarray
    offset: np.ndarray
    tokens: slice
    rng: np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where ``(new tokens, length after)`` rows are, ``(n, 0)`` for an idle one."""

    rows: Sequence[tuple[int, int]]
    num_slots: int
    page_size: int
    pages_per_row: int
    num_pages: int
    page_seed: int
    content: Content

    @property
    def borders(self) -> np.ndarray:
        new = [new for new, _ in self.rows] + [0] * (self.num_slots - len(self.rows))
        return np.cumsum([0, *new], dtype=np.int32)

    @property
    def table(self) -> np.ndarray:
        table = np.zeros((self.num_slots, self.pages_per_row), np.int32)
        ids = list(np.random.default_rng(self.page_seed).permutation(self.num_pages - 1) + 1)
        for row, (_, length) in enumerate(self.rows):
            for page in range(-(-length // self.page_size)):
                table[row, page] = ids.pop()
        return table

    def __iter__(self) -> Iterator[Row]:
        borders, table = self.borders, self.table
        for row, (new, length) in enumerate(self.rows):
            if length == 0:
                continue
            cached = np.arange(length - new)
            yield Row(
                length=length,
                num_cached=length - new,
                page=table[row, cached // self.page_size],
                offset=cached % self.page_size,
                tokens=slice(borders[row], borders[row + 1]),
                rng=self.content(row),
            )

    def arguments(self) -> dict[str, jax.Array]:
        """What describes the rows."""
        kv_lens = np.zeros(self.num_slots, np.int32)
        kv_lens[: len(self.rows)] = [length for _, length in self.rows]
        return {
            "kv_lens_S": jnp.asarray(kv_lens),
            "page_table_SM": jnp.asarray(self.table),
            "cu_q_lens_S1": jnp.asarray(self.borders),
            "distribution_3": jnp.asarray([0, 0, len(self.rows)], jnp.int32),
        }


def tokens_of(rows: Sequence[tuple[int, int]], row: int) -> slice:
    """The tokens of a row."""
    start = sum(new for new, _ in rows[:row])
    return slice(start, start + rows[row][0])
