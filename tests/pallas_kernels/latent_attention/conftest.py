"""Ragged batches of latents in poisoned memory, and the implementations to run on them."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import (
    LatentPages,
    fill_latent_pages,
    init_latent_pages,
    latent_attention,
    scatter_latent_pages,
)
from pallas_kernels.latent_attention import tpu_tuning, xla
from tests.pallas_kernels.batches import Batch, Content, Layout
from tests.pallas_kernels.on_chip import interpret_of

SMALL_TILES = tpu_tuning.Tiles(short_positions=16, long_tokens=4, long_positions=16)
"""So that small batches have many blocks."""
SMALL_BLOCK, SMALL_TILE = 16, (12, 12)
"""The same for plain XLA: positions of a block, and heads times tokens of a tile."""


@dataclass(frozen=True, kw_only=True)
class LatentBatch(Batch):
    PAGES, NEW = "latent_pages", ("latent_TR", "rope_Tr")
    QUERIES = ("q_latent_TNR", "q_rope_TNr")

    q_latent_TNR: jax.Array
    q_rope_TNr: jax.Array
    latent_TR: jax.Array | None
    rope_Tr: jax.Array | None
    latent_pages: LatentPages
    kv_lens_S: jax.Array
    page_table_SM: jax.Array
    cu_q_lens_S1: jax.Array
    distribution_3: jax.Array


def make_batch(
    rows: Sequence[tuple[int, int]],
    *,
    seed: int = 0,
    num_tokens: int = 24,
    num_slots: int = 6,
    num_heads: int = 3,
    latent_rank: int = 16,
    rope_dim: int = 8,
    page_size: int = 8,
    pages_per_row: int = 12,
    num_pages: int | None = None,
    pages_dtype: str = "float32",
    q_dtype: str = "float32",
    content: Content | None = None,
    page_seed: int = 0,
) -> LatentBatch:
    """A batch of ``(new tokens, length after)`` rows, ``(n, 0)`` for an idle one."""
    layout = Layout(
        rows=rows,
        num_slots=num_slots,
        page_size=page_size,
        pages_per_row=pages_per_row,
        num_pages=num_pages or 1 + num_slots * pages_per_row,
        page_seed=page_seed,
        content=content or (lambda row: np.random.default_rng((seed, row))),
    )
    num_pages, width = layout.num_pages, latent_rank + rope_dim
    q = np.full((num_tokens, num_heads, width), np.nan, np.float32)
    new = np.full((num_tokens, width), np.nan, np.float32)
    pool = np.full((num_pages, page_size, width), np.nan, np.float32)
    for row in layout:
        cached = row.num_cached
        latents = row.rng.normal(size=(row.length, width))
        pool[row.page, row.offset] = latents[:cached]
        new[row.tokens] = latents[cached:]
        q[row.tokens] = row.rng.normal(size=(row.length, num_heads, width))[cached:]
    sizes = (num_pages, page_size, latent_rank, rope_dim)
    pages = init_latent_pages(*sizes, pages_dtype, implementation="reference")
    all_ids = np.arange(num_pages, dtype=np.int32)
    stored = jnp.asarray(pool, pages_dtype)
    pages = scatter_latent_pages(
        pages, all_ids, stored[..., :latent_rank], stored[..., latent_rank:]
    )
    return LatentBatch(
        q_latent_TNR=jnp.asarray(q[..., :latent_rank], q_dtype),
        q_rope_TNr=jnp.asarray(q[..., latent_rank:], q_dtype),
        latent_TR=jnp.asarray(new[..., :latent_rank], q_dtype),
        rope_Tr=jnp.asarray(new[..., latent_rank:], q_dtype),
        latent_pages=fill_latent_pages(pages, all_ids[:1], np.nan),
        **layout.arguments(),
    )


@functools.cache
def _attend(implementation: str, **options) -> Callable[..., tuple[jax.Array, LatentPages]]:
    static = {"scale": 0.25, "implementation": implementation, **options}
    return jax.jit(lambda *batch: latent_attention(*batch, **static))


def in_layout_of(implementation: str, pages: LatentPages) -> LatentPages:
    """The same pool, page 0 included, in the layout that an implementation wants."""
    ids = jnp.arange(pages.num_pages, dtype=jnp.int32)
    latents, ropes = pages.read(ids, jnp.ones(ids.shape, bool))
    sizes = (pages.num_pages, pages.page_size, pages.latent_rank, pages.rope_dim)
    return init_latent_pages(*sizes, pages.dtype, implementation=implementation).write(
        ids, latents, ropes
    )


@pytest.fixture(scope="session")
def batch_of() -> Callable[..., LatentBatch]:
    return make_batch


@pytest.fixture(scope="session")
def attend() -> Callable[..., tuple[np.ndarray, LatentPages]]:
    """``attend(implementation, batch, **options)``. A batch and the pages that come back have the
    layout of ``reference``, whatever ran. Tiles of TPU and plain XLA are small."""

    def call(
        implementation: str, batch: LatentBatch, interpret: Any = True, **options
    ) -> tuple[np.ndarray, LatentPages]:
        interpret = interpret_of(implementation, interpret)
        if implementation in ("tpu", "gpu"):
            batch = batch.where(latent_pages=in_layout_of(implementation, batch.latent_pages))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tpu_tuning, "tiles_for", lambda _: SMALL_TILES)
            patch.setattr(xla, "BLOCK_POSITIONS", SMALL_BLOCK)
            patch.setattr(xla, "TILE_ROWS", SMALL_TILE)
            # The interpreter calls back into Python, and must find the threads of the CPU free.
            jax.block_until_ready(batch.arguments)
            out, pages = _attend(implementation, interpret=interpret, **options)(*batch.arguments)
            jax.block_until_ready((out, pages))
        if implementation in ("tpu", "gpu"):
            pages = in_layout_of("reference", pages)
        return np.asarray(out, np.float32), pages

    return call
