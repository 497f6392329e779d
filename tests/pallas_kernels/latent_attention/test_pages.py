"""The pool: written in place, moved by page, and never copied as a whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from pallas_kernels import (
    copy_latent_pages,
    fill_latent_pages,
    gather_latent_pages,
    init_latent_pages,
    latent_attention,
    latent_pages_spec,
    scatter_latent_pages,
)
from pallas_kernels.latent_attention.pages import STORAGE

DTYPES = tuple(STORAGE)
LAYOUTS = ["xla", "tpu"]


def ids(*values):
    return jnp.asarray(values, jnp.int32)


def some_latents(num_pages, dtype, seed=0):
    x = np.random.default_rng(seed).integers(-90, 90, (num_pages, 32, 12))
    return jnp.asarray(x[..., :8], dtype), jnp.asarray(x[..., 8:], dtype)


def some_pages(dtype, layout):
    """Pages of which page i holds values of its own."""
    pages = init_latent_pages(7, 32, 8, 4, dtype, implementation=layout)
    return scatter_latent_pages(pages, ids(*range(7)), *some_latents(7, dtype))


def content(pages, *page_ids):
    return [np.asarray(x, np.float32) for x in gather_latent_pages(pages, ids(*page_ids))]


def kinds(dtypes=DTYPES):
    """Layouts and the dtypes that they hold."""
    return [(layout, d) for layout in LAYOUTS for d in dtypes if layout != "tpu" or d != "float16"]


@pytest.mark.parametrize(("layout", "dtype"), kinds())
def test_gather_returns_what_scatter_wrote_and_zeros_for_ids_nobody_owns(layout, dtype):
    latents = some_latents(3, dtype, seed=1)
    pages = init_latent_pages(7, 32, 8, 4, dtype, implementation=layout)
    pages = scatter_latent_pages(pages, ids(5, 2, 6), *latents)
    for got, wanted in zip(gather_latent_pages(pages, ids(5, 2, 6)), latents, strict=True):
        assert got.dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(np.asarray(got), np.asarray(wanted))
    for out_of_range in content(pages, 0, -1, 7, 2**31 - 1):
        assert not out_of_range.any()


@pytest.mark.parametrize(("layout", "dtype"), kinds())
def test_copies_read_every_source_before_any_target_is_written(layout, dtype):
    pages = some_pages(dtype, layout)
    before = content(pages, 1, 2, 3, 4, 5, 6)
    swapped = copy_latent_pages(pages, ids(1, 2, 0, 0), ids(2, 1, 0, 3))
    for got, wanted in zip(content(swapped, 1, 2, 3, 4, 5, 6), before, strict=True):
        np.testing.assert_array_equal(got, wanted[[1, 0, 2, 3, 4, 5]])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bad", [0, -1, 7, 2**31 - 1])
def test_ids_nobody_owns_are_never_written(bad, layout):
    pages = some_pages("bfloat16", layout)
    for changed in (
        scatter_latent_pages(pages, ids(bad), *some_latents(1, "bfloat16", seed=2)),
        copy_latent_pages(pages, ids(3), ids(bad)),
        copy_latent_pages(pages, ids(bad), ids(3)),
    ):
        for leaf, wanted in zip(jax.tree.leaves(changed), jax.tree.leaves(pages), strict=True):
            np.testing.assert_array_equal(np.asarray(leaf), np.asarray(wanted))


@pytest.mark.parametrize(("layout", "dtype"), kinds())
def test_fill_poisons_the_named_pages_and_no_other(layout, dtype):
    pages = some_pages(dtype, layout)
    filled = fill_latent_pages(pages, ids(2, 4, -1, 7), float("nan"))
    for got, wanted in zip(
        content(filled, 1, 2, 3, 4, 5, 6), content(pages, 1, 3, 5, 6), strict=True
    ):
        assert np.isnan(got[[1, 3]]).all()
        np.testing.assert_array_equal(got[[0, 2, 4, 5]], wanted)


def test_scatter_refuses_another_dtype():
    with pytest.raises(ValueError, match=r"latents have dtype float32: the pages hold bfloat16"):
        scatter_latent_pages(some_pages("bfloat16", "xla"), ids(1), *some_latents(1, "float32"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scatter_refuses_another_shape_also_one_that_would_spread(layout):
    pages = some_pages("bfloat16", layout)
    latents, rope = some_latents(2, "bfloat16")
    take = r"2 pages of 32 positions take \(2, 32"
    with pytest.raises(ValueError, match=rf"latents have shape \(2, 1, 8\): {take}, 8\)"):
        scatter_latent_pages(pages, ids(1, 2), latents[:, :1], rope)
    with pytest.raises(ValueError, match=rf"rotary parts have shape \(1, 32, 4\): {take}, 4\)"):
        scatter_latent_pages(pages, ids(1, 2), latents, rope[:1])


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_values_beyond_a_dtype_are_stored_as_its_largest(dtype, batch_of, attend):
    batch = batch_of([(1, 1)], pages_dtype=dtype)
    huge = batch.where(latent_TR=jnp.full_like(batch.latent_TR, -1e9))
    _, pages = attend("xla", huge)
    latents, _ = content(pages, batch.page_table_SM[0, 0])
    np.testing.assert_array_equal(latents[0, 0], -float(jnp.finfo(dtype).max))


def test_page_properties_and_spec_name_the_shape():
    pages = init_latent_pages(7, 8, 16, 4, jnp.bfloat16)
    sizes = (pages.num_pages, pages.page_size, pages.latent_rank, pages.rope_dim)
    assert sizes == (7, 8, 16, 4)
    assert pages.dtype == jnp.bfloat16
    assert latent_pages_spec("model") == PartitionSpec()


def test_query_heads_split_over_devices_share_the_pool(
    four_devices, batch_of, attend, assert_close
):
    batch = batch_of([(1, 40), (5, 30)], num_heads=4)
    expected, _ = attend("xla", batch)
    mesh = jax.sharding.Mesh(np.array(four_devices[:2]), ("model",))
    heads, whole, pool = PartitionSpec(None, "model"), PartitionSpec(), latent_pages_spec("model")
    split = jax.shard_map(
        functools.partial(latent_attention, scale=0.25),
        mesh=mesh,
        in_specs=(heads, heads, whole, whole, pool, whole, whole, whole, whole),
        out_specs=(heads, pool),
        check_vma=False,
    )
    out, _ = jax.jit(split)(*batch.arguments)
    assert_close(np.asarray(out), expected)


@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_step_copies_the_pool(dtype, implementation, batch_of):
    batch = batch_of([(1, 20), (5, 9)])
    *tokens, _, kv_lens, table, borders, zones = batch.arguments

    def memory(num_pages):
        pool = jax.eval_shape(lambda: init_latent_pages(num_pages, 16, 16, 8, dtype))
        call = jax.jit(
            lambda pages: latent_attention(
                *tokens,
                pages,
                kv_lens,
                table,
                borders,
                zones,
                scale=0.25,
                implementation=implementation,
            ),
            donate_argnums=0,
        )
        pool_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pool))
        return call.lower(pool).compile().memory_analysis(), pool_bytes

    small, _ = memory(1_000)
    large, pool_bytes = memory(20_000)
    assert large.temp_size_in_bytes == small.temp_size_in_bytes
    assert large.alias_size_in_bytes == pool_bytes
