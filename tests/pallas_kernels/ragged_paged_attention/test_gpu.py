"""The Hopper kernel in the interpreter of Mosaic GPU, against the meaning, on small batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import (
    NoImplementation,
    gather_kv_pages,
    init_kv_pages,
    ragged_paged_attention,
    scatter_kv_pages,
)

pytest.importorskip("absl", reason="the interpreter of Mosaic GPU needs absl-py")

pytestmark = pytest.mark.slow  # The interpreter takes seconds for each program.

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


def on_gpu_pages(batch):
    """The same batch in pages of the Hopper kernel; poison travels with the content."""
    pages = batch.kv_pages
    ids = jnp.arange(1, pages.num_pages, dtype=jnp.int32)
    sizes = (pages.num_pages, pages.page_size, pages.num_kv_heads, pages.head_dim)
    empty = init_kv_pages(*sizes, pages.dtype, implementation="gpu")
    poisoned = empty.holding(*(jnp.full_like(x, jnp.nan) for x in (empty.keys, empty.values)))
    return batch.where(kv_pages=scatter_kv_pages(poisoned, ids, *gather_kv_pages(pages, ids)))


def small(batch_of, rows, **options):
    sizes = {"head_dim": 64, "page_size": 64, "pages_per_row": 4, "num_slots": 5, "num_tokens": 24}
    return batch_of(rows, **{"pages_dtype": "bfloat16", "q_dtype": "bfloat16", **sizes, **options})


def run(batch, name, **options):
    arrays = {key: jnp.asarray(x) for key, x in options.items() if isinstance(x, tuple)}
    call = jax.jit(
        lambda *arguments: ragged_paged_attention(
            *arguments, scale=0.25, implementation=name, interpret=True, **{**options, **arrays}
        )
    )
    out, pages = call(*batch.arguments)
    return np.asarray(out, np.float32), pages


def check(batch, assert_close, **options):
    expected, expected_pages = run(batch, "reference", **options)
    out, pages = run(on_gpu_pages(batch), "gpu", **options)
    assert_close(out, expected, "bfloat16")
    ids = jnp.arange(1, pages.num_pages, dtype=jnp.int32)
    for got, wanted in zip(
        gather_kv_pages(pages, ids), gather_kv_pages(expected_pages, ids), strict=True
    ):
        np.testing.assert_array_equal(
            np.asarray(got).view(np.uint16), np.asarray(wanted).view(np.uint16)
        )


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_gpu_equals_the_reference(rows, batch_of, assert_close):
    check(small(batch_of, rows), assert_close)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_option(options, batch_of, assert_close):
    check(small(batch_of, ROWS["mixed"]), assert_close, **options)


@pytest.mark.parametrize("head_dim", [128, 256])
def test_every_head_dim_on_pages_of_two_blocks(head_dim, batch_of, assert_close):
    sizes = {"head_dim": head_dim, "page_size": 128, "pages_per_row": 2, "group_size": 1}
    check(small(batch_of, [(1, 150), (4, 140)], **sizes), assert_close)


def test_tiles_of_two_warpgroups(batch_of, assert_close):
    rows, sizes = [(70, 150), (1, 3), (40, 40)], {"num_tokens": 120, "num_slots": 3}
    check(small(batch_of, rows, **sizes), assert_close)


@pytest.mark.parametrize("window", [None, 70])
def test_a_position_in_no_page_is_not_seen(window, batch_of, assert_close):
    batch = small(batch_of, [(1, 190), (6, 180)])
    table = batch.page_table_SM.at[0, 2].set(0).at[1, 1].set(9_999)
    check(batch.where(page_table_SM=table), assert_close, sliding_window=window)


def test_float16_pages_take_float32_queries(batch_of, assert_close):
    batch = small(batch_of, [(1, 70), (3, 5)], pages_dtype="float16", q_dtype="float32")
    check(batch, assert_close)


def test_a_cpu_never_chooses_it_and_a_refusal_says_why(batch_of):
    batch = small(batch_of, [(1, 3)])
    call = {"scale": 0.25, "implementation": "gpu"}
    with pytest.raises(NoImplementation, match="gpu: the pages have the layout of another"):
        ragged_paged_attention(*batch.arguments, **call)
    theirs = on_gpu_pages(batch)
    with pytest.raises(NoImplementation, match="gpu: the backend is cpu; xla: the pages have the"):
        ragged_paged_attention(*theirs.arguments, scale=0.25)
    with pytest.raises(NoImplementation, match="update_kv_cache = False with new keys"):
        ragged_paged_attention(*theirs.arguments, **call, update_kv_cache=False)
    for sizes, reason in (
        ((3, 32, 1, 64, "bfloat16"), "page_size = 32 is not one of 64, 128, 256"),
        ((3, 64, 1, 80, "bfloat16"), "head_dim = 80 is not one of 64, 128, 256"),
        ((3, 64, 1, 64, "float32"), "dtype of the pages = float32 is not one of bfloat16, float16"),
    ):
        with pytest.raises(NoImplementation, match=reason):
            init_kv_pages(*sizes, implementation="gpu")
