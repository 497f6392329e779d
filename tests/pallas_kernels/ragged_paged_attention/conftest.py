"""Ragged batches in poisoned memory, and the implementations to run on them."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import (
    KVPages,
    fill_kv_pages,
    init_kv_pages,
    ragged_paged_attention,
    scatter_kv_pages,
)
from pallas_kernels.ragged_paged_attention import cpu, tpu, xla_items, xla_tiles
from pallas_kernels.ragged_paged_attention.tpu_tiles import TpuTiles
from tests.pallas_kernels.batches import Batch, Content, Layout
from tests.pallas_kernels.on_chip import interpret_of


@dataclass(frozen=True, kw_only=True)
class KVBatch(Batch):
    """Of int8 pages, what is not written holds 127."""

    PAGES, NEW, QUERIES = "kv_pages", ("k_TKH", "v_TKH"), ("q_TNH",)

    q_TNH: jax.Array
    k_TKH: jax.Array | None
    v_TKH: jax.Array | None
    kv_pages: KVPages
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
    num_kv_heads: int = 2,
    group_size: int = 3,
    head_dim: int = 16,
    page_size: int = 8,
    pages_per_row: int = 12,
    num_pages: int | None = None,
    pages_dtype: str = "float32",
    q_dtype: str = "float32",
    content: Content | None = None,
    page_seed: int = 0,
) -> KVBatch:
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
    num_pages, kv_shape = layout.num_pages, (num_kv_heads, head_dim)
    q = np.full((num_tokens, num_kv_heads * group_size, head_dim), np.nan, np.float32)
    k, v = (np.full((num_tokens, *kv_shape), np.nan, np.float32) for _ in range(2))
    unwritten = 127.0 if pages_dtype == "int8" else np.nan
    pool_k, pool_v = (
        np.full((num_pages, page_size, *kv_shape), unwritten, np.float32) for _ in range(2)
    )
    stored_scale = 40.0 if pages_dtype == "int8" else 1.0
    for row in layout:
        cached, place = row.num_cached, (row.page, row.offset)
        keys, values = row.rng.normal(size=(2, row.length, *kv_shape))
        pool_k[place], pool_v[place] = keys[:cached] * stored_scale, values[:cached] * stored_scale
        k[row.tokens], v[row.tokens] = keys[cached:], values[cached:]
        q[row.tokens] = row.rng.normal(size=(row.length, *q.shape[1:]))[cached:]
    sizes = (num_pages, page_size, num_kv_heads, head_dim)
    pages = init_kv_pages(*sizes, pages_dtype, implementation="reference")
    all_ids = np.arange(num_pages, dtype=np.int32)
    stored_k, stored_v = (
        jnp.asarray(np.clip(np.round(x), -127, 127) if pages_dtype == "int8" else x, pages_dtype)
        for x in (pool_k, pool_v)
    )
    pages = fill_kv_pages(
        scatter_kv_pages(pages, all_ids, stored_k, stored_v), all_ids[:1], unwritten
    )
    return KVBatch(
        q_TNH=jnp.asarray(q, q_dtype),
        k_TKH=jnp.asarray(k, q_dtype),
        v_TKH=jnp.asarray(v, q_dtype),
        kv_pages=pages,
        **layout.arguments(),
    )


SMALL_TILES = TpuTiles(kv_heads=1, short_positions=16, long_positions=32, long_rows=16, writes=4)


@functools.cache
def _attend(
    implementation: str, zones: tuple[int, int, int] | None = None, **options
) -> Callable[..., tuple[jax.Array, KVPages]]:
    """``zones``: the distribution, known when the call is compiled."""
    arrays = {name: jnp.asarray(x) for name, x in options.items() if isinstance(x, tuple)}
    static = {name: x for name, x in options.items() if not isinstance(x, tuple)}
    static = {"scale": 0.25, "implementation": implementation, **static}

    def call(*batch):
        rows = batch if zones is None else (*batch[:-1], np.asarray(zones, np.int32))
        return ragged_paged_attention(*rows, **arrays, **static)

    return jax.jit(call)


def in_layout_of(implementation: str, pages: KVPages) -> KVPages:
    """The same pool, page 0 included, in the layout that an implementation wants."""
    ids = jnp.arange(pages.num_pages, dtype=jnp.int32)
    keys, values = pages.read(ids, jnp.ones(ids.shape, bool))
    sizes = (pages.num_pages, pages.page_size, pages.num_kv_heads, pages.head_dim)
    return init_kv_pages(*sizes, pages.dtype, implementation=implementation).write(
        ids, keys, values
    )


@pytest.fixture(scope="session", name="in_layout_of")
def layout_changer() -> Callable[[str, KVPages], KVPages]:
    return in_layout_of


@pytest.fixture(scope="session")
def batch_of() -> Callable[..., KVBatch]:
    return make_batch


@pytest.fixture(scope="session")
def attend() -> Callable[..., tuple[np.ndarray, KVPages]]:
    """``attend(implementation, batch, **options)``; arrays among the options are given as tuples.

    Blocks, chunks and tiles are made small, so that small batches have many of each. A batch and
    the pages that come back have the layout of ``reference``, whatever ran.
    """

    def call(
        implementation: str, batch: KVBatch, interpret: Any = True, **options
    ) -> tuple[np.ndarray, KVPages]:
        interpret = interpret_of(implementation, interpret)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(xla_items, "CHUNK_BYTES", 4096)
            patch.setattr(xla_tiles, "BLOCK_POSITIONS", 16)
            patch.setattr(xla_tiles, "TILE_QUERIES", (8, 8))
            patch.setattr(cpu, "TILE_QUERIES", 8)
            patch.setattr(tpu, "tpu_tiles_for", lambda _: SMALL_TILES)
            if implementation in ("tpu", "gpu"):
                batch = batch.where(kv_pages=in_layout_of(implementation, batch.kv_pages))
            # The interpreter calls back into Python, and must find the threads of the CPU free.
            jax.block_until_ready(batch.arguments)
            out, pages = _attend(implementation, interpret=interpret, **options)(*batch.arguments)
            jax.block_until_ready((out, pages))
            if implementation in ("tpu", "gpu"):
                pages = in_layout_of("reference", pages)
        return np.asarray(out, np.float32), pages

    return call
