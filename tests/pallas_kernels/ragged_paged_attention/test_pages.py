"""The pool: written in place, moved by page, and never copied as a whole."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from pallas_kernels import (
    NoImplementation,
    copy_kv_pages,
    fill_kv_pages,
    gather_kv_pages,
    init_kv_pages,
    kv_pages_spec,
    ragged_paged_attention,
    scatter_kv_pages,
)
from pallas_kernels.ragged_paged_attention.pages import STORAGE

DTYPES = tuple(STORAGE)


def ids(*values):
    return jnp.asarray(values, jnp.int32)


def some_pages(dtype, num_pages=7, seed=0):
    """Pages of which page i holds values of its own."""
    pages = init_kv_pages(num_pages, 8, 2, 4, dtype)
    keys, values = np.random.default_rng(seed).integers(-90, 90, (2, num_pages, 8, 2, 4))
    all_ids = jnp.arange(num_pages, dtype=jnp.int32)
    return scatter_kv_pages(pages, all_ids, jnp.asarray(keys, dtype), jnp.asarray(values, dtype))


def content(pages, *page_ids):
    return [np.asarray(x, np.float32) for x in gather_kv_pages(pages, ids(*page_ids))]


@pytest.mark.parametrize("dtype", DTYPES)
def test_gather_returns_what_scatter_wrote_and_zeros_for_ids_nobody_owns(dtype):
    keys, values = np.random.default_rng(1).integers(-90, 90, (2, 3, 8, 2, 4))
    keys, values = jnp.asarray(keys, dtype), jnp.asarray(values, dtype)
    pages = scatter_kv_pages(init_kv_pages(7, 8, 2, 4, dtype), ids(5, 2, 6), keys, values)
    for got, wanted in zip(gather_kv_pages(pages, ids(5, 2, 6)), (keys, values), strict=True):
        assert got.dtype == jnp.dtype(dtype)
        np.testing.assert_array_equal(np.asarray(got), np.asarray(wanted))
    for out_of_range in content(pages, 0, -1, 7, 2**31 - 1):
        assert not out_of_range.any()


@pytest.mark.parametrize("wrong", [np.zeros((1, 2), np.int32), np.ones(2, np.float32)])
def test_ids_that_are_no_list_of_integers_are_refused(wrong):
    pages = some_pages("float32")
    for use in (
        lambda ids: gather_kv_pages(pages, ids),
        lambda ids: fill_kv_pages(pages, ids, 0.0),
        lambda ids: copy_kv_pages(pages, ids, ids),
        lambda ids: scatter_kv_pages(pages, ids, *gather_kv_pages(pages, [1, 2])),
    ):
        with pytest.raises(ValueError, match=r"ids of shape .* and dtype .* a list \[n\] of int"):
            use(wrong)


def test_an_id_of_more_than_32_bits_is_no_page():
    pages = some_pages("float32")
    for got in gather_kv_pages(pages, np.array([2**32 + 1, -(2**32) + 1])):
        assert not np.asarray(got).any()
    copied = copy_kv_pages(pages, np.array([2**32 + 1]), np.array([2]))
    for got, wanted in zip(content(copied, 2), content(pages, 2), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
def test_copies_read_every_source_before_any_target_is_written(dtype):
    pages = some_pages(dtype)
    before = content(pages, 1, 2, 3, 4, 5, 6)
    swapped = copy_kv_pages(pages, ids(1, 2, 0, 0), ids(2, 1, 0, 3))
    for got, wanted in zip(content(swapped, 1, 2, 3, 4, 5, 6), before, strict=True):
        np.testing.assert_array_equal(got, wanted[[1, 0, 2, 3, 4, 5]])


@pytest.mark.parametrize("bad", [0, -1, 7, 2**31 - 1])
def test_ids_nobody_owns_are_never_written(bad):
    pages = some_pages("bfloat16")
    new = jnp.full((1, 8, 2, 4), 5, jnp.bfloat16)
    for changed in (
        scatter_kv_pages(pages, ids(bad), new, new),
        copy_kv_pages(pages, ids(3), ids(bad)),
        copy_kv_pages(pages, ids(bad), ids(3)),
    ):
        for leaf, wanted in zip(jax.tree.leaves(changed), jax.tree.leaves(pages), strict=True):
            np.testing.assert_array_equal(np.asarray(leaf), np.asarray(wanted))


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "int8"])
def test_fill_poisons_the_named_pages_and_no_other(dtype):
    pages = some_pages(dtype)
    filled = fill_kv_pages(pages, ids(2, 4, -1, 7), float("nan"))
    for got, wanted in zip(
        content(filled, 1, 2, 3, 4, 5, 6), content(pages, 1, 3, 5, 6), strict=True
    ):
        assert np.isnan(got[[1, 3]]).all()
        np.testing.assert_array_equal(got[[0, 2, 4, 5]], wanted)


def test_int8_pages_cannot_be_filled_with_nan():
    with pytest.raises(ValueError, match=r"value = nan cannot be held by int8 pages"):
        fill_kv_pages(init_kv_pages(3, 8, 1, 4, "int8"), ids(1), float("nan"))


def test_scatter_refuses_another_dtype():
    new = jnp.zeros((1, 8, 2, 4), jnp.float32)
    with pytest.raises(ValueError, match=r"keys have dtype float32: the pages hold bfloat16"):
        scatter_kv_pages(some_pages("bfloat16"), ids(1), new, new)


@pytest.mark.parametrize("layout", ["xla", "tpu", "gpu"])
@pytest.mark.parametrize(
    "shape", [(2, 64, 1, 64), (1, 64, 2, 64), (2, 64, 2, 1), (2, 1, 2, 64), (64, 2, 64)]
)
def test_scatter_refuses_another_shape_also_one_that_would_spread(shape, layout):
    pages = init_kv_pages(3, 64, 2, 64, "float32", implementation=layout)
    whole, wrong = jnp.zeros((2, 64, 2, 64)), jnp.zeros(shape)
    for name, new in (("keys", (wrong, whole)), ("values", (whole, wrong))):
        message = f"{name} have shape {shape}: 2 pages of 64 positions take (2, 64, 2, 64)"
        with pytest.raises(ValueError, match=re.escape(message)):
            scatter_kv_pages(pages, ids(1, 2), *new)


def test_ids_are_lists_of_one_length():
    pages, page = some_pages("float32"), jnp.zeros((1, 8, 2, 4))
    with pytest.raises(
        ValueError, match=r"\(1,\) to copy from and \(2,\) to copy to .* length \[n\]"
    ):
        copy_kv_pages(pages, ids(3), ids(1, 2))
    with pytest.raises(ValueError, match=r"ids of shape \(1, 1\) .* a list \[n\]"):
        copy_kv_pages(pages, ids(3)[None], ids(1)[None])
    with pytest.raises(ValueError, match=r"ids of shape \(1, 1\) .* a list \[n\]"):
        scatter_kv_pages(pages, ids(1)[None], page, page)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "int8"])
def test_values_beyond_a_dtype_are_stored_as_its_largest(dtype, batch_of, attend):
    batch = batch_of([(1, 1)], pages_dtype=dtype)
    huge = batch.where(v_TKH=jnp.full_like(batch.v_TKH, -1e9))
    _, pages = attend("xla", huge, k_scale_K=(1.0, 1.0), v_scale_K=(1.0, 1.0))
    _, values = content(pages, batch.page_table_SM[0, 0])
    largest = 127 if dtype == "int8" else float(jnp.finfo(dtype).max)
    np.testing.assert_array_equal(values[0, 0], -largest)


def test_page_properties_and_spec_name_the_shape():
    pages = init_kv_pages(7, 8, 2, 4, jnp.bfloat16)
    assert (pages.num_pages, pages.page_size, pages.num_kv_heads, pages.head_dim) == (7, 8, 2, 4)
    assert pages.dtype == jnp.bfloat16
    assert kv_pages_spec("model") == PartitionSpec(None, "model")


def test_pages_split_over_devices_by_kv_head(four_devices, batch_of, attend, assert_close):
    batch = batch_of([(1, 40), (5, 30)])
    expected, _ = attend("xla", batch)
    mesh = jax.sharding.Mesh(np.array(four_devices[:2]), ("model",))
    heads, rest = PartitionSpec(None, "model"), PartitionSpec()
    call = functools.partial(ragged_paged_attention, scale=0.25)
    specs = (heads, heads, heads, kv_pages_spec("model"), rest, rest, rest, rest)
    split = jax.shard_map(
        call, mesh=mesh, in_specs=specs, out_specs=(heads, heads), check_vma=False
    )
    out, _ = jax.jit(split)(*batch.arguments)
    assert_close(np.asarray(out), expected)


def test_another_page_size_is_left_to_the_reference():
    assert init_kv_pages(3, 24, 1, 4, "float32").page_size == 24
    with pytest.raises(NoImplementation, match=r"page_size = 24 is not one of 8, 16, 32, 64"):
        init_kv_pages(3, 24, 1, 4, "float32", implementation="xla")


@pytest.mark.parametrize(
    ("size", "name"), [((0, 8, 1, 4), "num_pages"), ((3, 8, 0, 4), "num_kv_heads")]
)
def test_a_pool_without_extent_is_refused(size, name):
    with pytest.raises(ValueError, match=rf"{name} = 0 is not 1 or more"):
        init_kv_pages(*size, "float32")


def test_a_dtype_that_pages_cannot_hold_is_refused():
    with pytest.raises(ValueError, match=r"dtype = int32 is not one of float32, bfloat16"):
        init_kv_pages(3, 8, 1, 4, "int32")


def memory_of(function, num_pages, dtype, *rest):
    pages = jax.eval_shape(lambda: init_kv_pages(num_pages, 16, 2, 16, dtype))
    compiled = jax.jit(function, donate_argnums=0).lower(pages, *rest).compile()
    return compiled.memory_analysis(), sum(
        leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pages)
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_step_copies_the_pool(dtype, batch_of):
    scale = jnp.ones(2, jnp.float32)
    batch = batch_of([(1, 20), (5, 9)])
    _, _, _, _, *rows = batch.arguments

    def step(pages, q, k, v, *rows):
        return ragged_paged_attention(
            q, k, v, pages, *rows, scale=0.25, k_scale_K=scale, v_scale_K=scale
        )

    arguments = (batch.q_TNH, batch.k_TKH, batch.v_TKH, *rows)
    small, _ = memory_of(step, 1_000, dtype, *arguments)
    large, pool_bytes = memory_of(step, 20_000, dtype, *arguments)
    assert large.temp_size_in_bytes == small.temp_size_in_bytes
    assert large.alias_size_in_bytes == pool_bytes


@pytest.mark.parametrize("dtype", DTYPES)
def test_moving_pages_does_not_copy_the_pool(dtype):
    shape = jax.ShapeDtypeStruct((3, 16, 2, 16), jnp.dtype(dtype))
    some = jax.ShapeDtypeStruct((3,), jnp.int32)
    for function, *rest in (
        (copy_kv_pages, some, some),
        (scatter_kv_pages, some, shape, shape),
        (lambda pages, n: (pages, gather_kv_pages(pages, n)), some),
        (lambda pages, n: fill_kv_pages(pages, n, 1.0), some),
    ):
        analysis, pool_bytes = memory_of(function, 20_000, dtype, *rest)
        assert analysis.temp_size_in_bytes < pool_bytes / 100
        assert analysis.alias_size_in_bytes == pool_bytes
