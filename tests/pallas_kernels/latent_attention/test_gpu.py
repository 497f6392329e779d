"""The Hopper kernel in the interpreter of Mosaic GPU, against the meaning, on small batches."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import gather_latent_pages
from pallas_kernels.latent_attention import gpu_kernel
from tests.pallas_kernels.independence import all_broken

pytest.importorskip("absl", reason="the interpreter of Mosaic GPU needs absl-py")

pytestmark = pytest.mark.interpreted

ROWS = {
    "decode": [(1, 70), (1, 0), (1, 1), (1, 200), (1, 64)],
    "prompt and chunk": [(9, 9), (3, 130)],
    "mixed": [(1, 129), (0, 0), (12, 12), (5, 80), (1, 30)],
}
OPTIONS = {
    "unwritten": {"update_kv_cache": False},
    "bidirectional, unwritten": {"causal": False, "update_kv_cache": False},
}


def small(batch_of, rows, **options):
    sizes = {
        "latent_rank": 256,
        "rope_dim": 64,
        "page_size": 64,
        "pages_per_row": 4,
        "num_slots": 5,
        "num_heads": 6,
    }
    return batch_of(rows, **{"pages_dtype": "bfloat16", "q_dtype": "bfloat16", **sizes, **options})


@pytest.fixture
def check(attend, assert_close, assert_same_pages):
    def equals_the_reference(batch, dtype="bfloat16", **options):
        expected, expected_pages = attend("reference", batch, **options)
        out, pages = attend("gpu", batch, **options)
        assert_close(out, expected, dtype)
        ids = jnp.arange(1, pages.num_pages, dtype=jnp.int32)  # Nobody owns page 0.
        assert_same_pages(*(gather_latent_pages(x, ids) for x in (pages, expected_pages)))

    return equals_the_reference


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_gpu_equals_the_reference(rows, batch_of, check):
    check(small(batch_of, rows))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option(options, batch_of, check):
    check(small(batch_of, ROWS["mixed"]), **options)


@pytest.mark.slow
def test_long_rows_are_split_and_many_heads_grouped_over_the_grid(batch_of, check, monkeypatch):
    monkeypatch.setattr(gpu_kernel, "INTERPRETED_BLOCKS", 2)
    sizes = {"latent_rank": 512, "num_heads": 96, "page_size": 128, "pages_per_row": 6}
    check(small(batch_of, [(1, 700), (3, 400), (1, 290)], **sizes))


@pytest.mark.parametrize("update_kv_cache", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_position_in_no_page_is_not_seen(update_kv_cache, batch_of, check):
    batch = small(batch_of, [(1, 190), (6, 180), (9, 130), (1, 65)])
    table = batch.page_table_SM.at[0, 2].set(0).at[1, 1].set(9_999).at[2, 2].set(-1)
    check(batch.where(page_table_SM=table), update_kv_cache=update_kv_cache)


@pytest.mark.slow
def test_float16_pages_take_float32_queries(batch_of, check):
    sizes = {"pages_dtype": "float16", "q_dtype": "float32", "rope_dim": 32}
    check(small(batch_of, [(1, 70), (3, 5)], **sizes))


@pytest.mark.slow
def test_what_the_pages_hold_is_read_without_new_latents(batch_of, attend, assert_close):
    batch = small(batch_of, [(1, 70), (4, 100)])
    expected, pages = attend("reference", batch)
    reader = batch.where(latent_pages=pages, latent_TR=None, rope_Tr=None)
    out, _ = attend("gpu", reader)
    assert_close(out, expected, "bfloat16")


def test_a_row_alone_equals_itself_among_others_bit_for_bit(batch_of, attend):
    rows = [(1, 150), (5, 80), (1, 30)]
    among, _ = attend("gpu", small(batch_of, rows))
    for row, tokens in ((0, slice(0, 1)), (1, slice(1, 6))):
        alone = small(
            batch_of,
            [(0, 0), rows[row]],
            page_seed=7,
            content=lambda _, row=row: np.random.default_rng((0, row)),
        )
        out, _ = attend("gpu", alone)
        np.testing.assert_array_equal(out[: rows[row][0]], among[tokens])


def test_broken_rows_of_every_kind_count_as_idle(batch_of, attend, assert_close, assert_same_pages):
    broken, without = all_broken(functools.partial(small, batch_of), 64, 4)
    expected, expected_pages = attend("reference", without)
    out, pages = attend("gpu", broken)
    assert_close(out, expected, "bfloat16")
    ids = jnp.arange(1, pages.num_pages, dtype=jnp.int32)  # Nobody owns page 0.
    assert_same_pages(*(gather_latent_pages(x, ids) for x in (pages, expected_pages)))
