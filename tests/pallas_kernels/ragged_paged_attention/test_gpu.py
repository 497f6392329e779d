"""The Hopper kernel in the interpreter of Mosaic GPU, against the meaning, on small batches."""

import jax.numpy as jnp
import pytest

from pallas_kernels import gather_kv_pages

pytest.importorskip("absl", reason="the interpreter of Mosaic GPU needs absl-py")

pytestmark = pytest.mark.interpreted

SINKS = (0.5, -1.0, 3.0, 0.0, 1.0, 2.0)
ROWS = {
    "decode": [(1, 70), (1, 0), (1, 1), (1, 200), (1, 64)],
    "prompt and chunk": [(9, 9), (3, 130)],
    "mixed": [(1, 129), (0, 0), (12, 12), (5, 80), (1, 30)],
}
OPTIONS = {
    "window": {"sliding_window": 50},
    "softcap and sinks": {"logit_softcap": 2.0, "sinks_N": SINKS},
    "bidirectional": {"causal": False},
}


def small(batch_of, rows, **options):
    sizes = {"head_dim": 64, "page_size": 64, "pages_per_row": 4, "num_slots": 5, "num_tokens": 24}
    return batch_of(rows, **{"pages_dtype": "bfloat16", "q_dtype": "bfloat16", **sizes, **options})


@pytest.fixture
def check(attend, assert_close, assert_same_pages):
    def equals_the_reference(batch, **options):
        expected, expected_pages = attend("reference", batch, **options)
        out, pages = attend("gpu", batch, **options)
        assert_close(out, expected, "bfloat16")
        assert_same_pages(*(in_order(x) for x in (pages, expected_pages)))

    return equals_the_reference


def in_order(pages):
    """Without page 0, which nobody owns."""
    return gather_kv_pages(pages, jnp.arange(1, pages.num_pages, dtype=jnp.int32))


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_gpu_equals_the_reference(rows, batch_of, check):
    check(small(batch_of, rows))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option(options, batch_of, check):
    check(small(batch_of, ROWS["mixed"]), **options)


@pytest.mark.parametrize("head_dim", [128, 256])
def test_every_head_dim_on_pages_of_two_blocks(head_dim, batch_of, check):
    sizes = {"head_dim": head_dim, "page_size": 128, "pages_per_row": 2, "group_size": 1}
    check(small(batch_of, [(1, 150), (4, 140)], **sizes))


def test_tiles_of_two_warpgroups(batch_of, check):
    rows, sizes = [(70, 150), (1, 3), (40, 40)], {"num_tokens": 120, "num_slots": 3}
    check(small(batch_of, rows, **sizes))


@pytest.mark.parametrize("window", [None, 70])
def test_a_position_in_no_page_is_not_seen(window, batch_of, check):
    batch = small(batch_of, [(1, 190), (6, 180)])
    table = batch.page_table_SM.at[0, 2].set(0).at[1, 1].set(9_999)
    check(batch.where(page_table_SM=table), sliding_window=window)


def test_float16_pages_take_float32_queries(batch_of, check):
    batch = small(batch_of, [(1, 70), (3, 5)], pages_dtype="float16", q_dtype="float32")
    check(batch)
