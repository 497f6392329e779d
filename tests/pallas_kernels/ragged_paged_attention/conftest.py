"""Ragged batches in poisoned memory, and the implementations to run on them."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
from pallas_kernels.ragged_paged_attention import tpu, xla
from pallas_kernels.ragged_paged_attention.tpu_tiles import TpuTiles


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The arguments of one call. All memory that no row has written holds NaN (127 in int8)."""

    q_TNH: jax.Array
    k_TKH: jax.Array | None
    v_TKH: jax.Array | None
    kv_pages: KVPages
    kv_lens_S: jax.Array
    page_table_SM: jax.Array
    cu_q_lens_S1: jax.Array
    distribution_3: jax.Array

    @property
    def arguments(self) -> tuple:
        return tuple(getattr(self, name) for name in self.__dataclass_fields__)

    def where(self, **changes) -> "Batch":
        return replace(self, **changes)


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
    content: Callable[[int], np.random.Generator] | None = None,
    page_seed: int = 0,
) -> Batch:
    """A batch of ``(new tokens, length after)`` rows, ``(n, 0)`` for an idle one.

    ``content`` gives each row its own generator of values, so that a row can move between batches.
    """
    content = content or (lambda row: np.random.default_rng((seed, row)))
    num_pages = num_pages or 1 + num_slots * pages_per_row
    kv_shape = (num_kv_heads, head_dim)
    q = np.full((num_tokens, num_kv_heads * group_size, head_dim), np.nan, np.float32)
    k, v = (np.full((num_tokens, *kv_shape), np.nan, np.float32) for _ in range(2))
    unwritten = 127.0 if pages_dtype == "int8" else np.nan
    pool_k, pool_v = (
        np.full((num_pages, page_size, *kv_shape), unwritten, np.float32) for _ in range(2)
    )
    kv_lens = np.zeros(num_slots, np.int32)
    borders = np.zeros(num_slots + 1, np.int32)
    table = np.zeros((num_slots, pages_per_row), np.int32)
    ids = list(np.random.default_rng(page_seed).permutation(num_pages - 1) + 1)
    stored_scale = 40.0 if pages_dtype == "int8" else 1.0
    for row, (new, length) in enumerate(rows):
        start, cached = borders[row], length - new
        borders[row + 1 :] += new
        kv_lens[row] = length
        if length == 0:
            continue
        for page in range(-(-length // page_size)):
            table[row, page] = ids.pop()
        rng = content(row)
        keys, values = rng.normal(size=(2, length, *kv_shape))
        place = table[row, np.arange(cached) // page_size], np.arange(cached) % page_size
        pool_k[place], pool_v[place] = keys[:cached] * stored_scale, values[:cached] * stored_scale
        tokens = slice(start, start + new)
        k[tokens], v[tokens] = keys[cached:], values[cached:]
        queries = rng.normal(size=(length, *q.shape[1:]))
        q[tokens] = queries[cached:]
    pages = init_kv_pages(num_pages, page_size, num_kv_heads, head_dim, pages_dtype)
    all_ids = np.arange(num_pages, dtype=np.int32)
    stored_k, stored_v = (
        jnp.asarray(np.clip(np.round(x), -127, 127) if pages_dtype == "int8" else x, pages_dtype)
        for x in (pool_k, pool_v)
    )
    pages = fill_kv_pages(
        scatter_kv_pages(pages, all_ids, stored_k, stored_v), all_ids[:1], unwritten
    )
    return Batch(
        q_TNH=jnp.asarray(q, q_dtype),
        k_TKH=jnp.asarray(k, q_dtype),
        v_TKH=jnp.asarray(v, q_dtype),
        kv_pages=pages,
        kv_lens_S=jnp.asarray(kv_lens),
        page_table_SM=jnp.asarray(table),
        cu_q_lens_S1=jnp.asarray(borders),
        distribution_3=jnp.asarray([0, 0, len(rows)], jnp.int32),
    )


SMALL_TILES = TpuTiles(kv_heads=1, short_positions=16, long_positions=32, long_rows=16, writes=4)


@functools.cache
def _attend(
    implementation: str, zones: tuple[int, int, int] | None = None, **options
) -> Callable[..., tuple[jax.Array, KVPages]]:
    """``zones``: the distribution, known when the call is compiled."""
    arrays = {name: jnp.asarray(x) for name, x in options.items() if isinstance(x, tuple)}
    static = {name: x for name, x in options.items() if not isinstance(x, tuple)}
    static = {"scale": 0.25, "implementation": implementation, "interpret": True, **static}

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
def batch_of() -> Callable[..., Batch]:
    return make_batch


@pytest.fixture(scope="session")
def attend() -> Callable[..., tuple[np.ndarray, KVPages]]:
    """``attend(implementation, batch, **options)``; arrays among the options are given as tuples.

    Blocks, chunks and tiles are made small, so that small batches have many of each. A batch and
    the pages that come back have the layout of ``reference``, whatever ran.
    """

    def call(implementation: str, batch: Batch, **options) -> tuple[np.ndarray, KVPages]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(xla, "BLOCK_POSITIONS", 16)
            patch.setattr(xla, "CHUNK_BYTES", 4096)
            patch.setattr(xla, "TILE_QUERIES", (8, 8))
            patch.setattr(tpu, "tpu_tiles_for", lambda _: SMALL_TILES)
            if implementation in ("tpu", "gpu"):
                batch = batch.where(kv_pages=in_layout_of(implementation, batch.kv_pages))
            # The interpreter calls back into Python, and must find the threads of the CPU free.
            jax.block_until_ready(batch.arguments)
            out, pages = _attend(implementation, **options)(*batch.arguments)
            jax.block_until_ready((out, pages))
            if implementation in ("tpu", "gpu"):
                pages = in_layout_of("reference", pages)
        return np.asarray(out, np.float32), pages

    return call


@pytest.fixture(scope="session")
def assert_close() -> Callable[[np.ndarray, np.ndarray, str], None]:
    """Equality up to the rounding of the queries' dtype."""
    tolerance = {"float32": 2e-5, "bfloat16": 2.0**-7, "float16": 2.0**-10}
    # Of float32, the Hopper kernel multiplies the 16 leading bits.
    tolerance["two bfloat16"] = 2.0**-14

    def check(out: np.ndarray, expected: np.ndarray, dtype: str = "float32") -> None:
        np.testing.assert_allclose(out, expected, rtol=tolerance[dtype], atol=tolerance[dtype])

    return check


@pytest.fixture(scope="session")
def assert_same_pages() -> Callable[[KVPages, KVPages], None]:
    """Equality bit for bit, NaN included."""

    def check(pages: KVPages, expected: KVPages) -> None:
        for leaf, wanted in zip(jax.tree.leaves(pages), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(
                np.asarray(leaf).view(np.uint8), np.asarray(wanted).view(np.uint8)
            )

    return check
