"""Searches in blocks against NumPy over whole rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jaxinfer.sampling.blocks import argmax, read_blocks, reduce_blocks, top

WIDTHS = [1, 7, 64, 65, 512, 1000, 1536]
FEW_VALUES = st.sampled_from([-np.inf, -2.5, 0.0, 1.0, 3.25])


def rows_of(width: int, seed: int = 0) -> np.ndarray:
    """Three rows with many equal values."""
    return np.random.default_rng(seed).integers(-9, 9, (3, width)).astype(np.float32)


@jax.jit
def block_argmax(x_SV):
    return argmax(x_SV, reduce_blocks(x_SV, jnp.max))


@pytest.mark.parametrize("width", WIDTHS)
def test_argmax_is_the_first_of_the_largest(width):
    x = rows_of(width)
    assert block_argmax(x).tolist() == np.argmax(x, axis=-1).tolist()


@given(x=hnp.arrays(np.float32, (2, 1000), elements=FEW_VALUES, fill=FEW_VALUES))
def test_argmax_with_ties_and_forbidden_columns_is_that_of_numpy(x):
    assert block_argmax(x).tolist() == np.argmax(x, axis=-1).tolist()


def test_argmax_of_a_row_of_nan_is_still_a_column():
    assert 0 <= int(block_argmax(np.full((1, 700), np.nan, np.float32))[0]) < 700


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("k", [1, 20, 64])
def test_top_is_the_head_of_a_stable_sort(width, k):
    x = rows_of(width, seed=k)
    values, ids = jax.jit(top, static_argnums=1)(x, k)
    order = np.argsort(-x, axis=-1, kind="stable")[:, :k]
    kept = order.shape[1]
    assert np.asarray(ids)[:, :kept].tolist() == order.tolist()
    assert np.asarray(values)[:, :kept].tolist() == np.take_along_axis(x, order, -1).tolist()
    assert np.all(np.asarray(values)[:, kept:] == -np.inf)
    assert np.all(np.asarray(ids)[:, kept:] == 0)


@pytest.mark.parametrize("width", WIDTHS)
def test_block_maxima_cover_each_column_once(width):
    x = rows_of(width)
    expected = [x[:, start : start + 64].max(-1) for start in range(0, width, 64)]
    assert np.array_equal(reduce_blocks(x, jnp.max, 64), np.stack(expected, 1))


def test_the_last_block_is_filled_where_it_overlaps_the_one_before():
    x = np.arange(100, dtype=np.float32)[None]
    values, ids = read_blocks(jnp.asarray(x), jnp.asarray([[1]], jnp.int32), fill=-1, size=64)
    owned = np.asarray(ids)[0, 0] >= 64
    assert np.asarray(ids)[0, 0].tolist() == list(range(36, 100))
    assert np.array_equal(np.asarray(values)[0, 0], np.where(owned, np.arange(36, 100), -1))
