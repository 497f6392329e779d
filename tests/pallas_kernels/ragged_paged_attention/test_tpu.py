"""What only the TPU kernel promises: which pages it fetches, in what order its copies run, and whom
it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import NoImplementation, init_kv_pages, ragged_paged_attention
from pallas_kernels.paging.options import Options
from pallas_kernels.ragged_paged_attention import tpu, tpu_pages
from pallas_kernels.ragged_paged_attention.tpu_tiles import TpuTiles
from tests.pallas_kernels.on_chip import interpret_of


@functools.cache
def counting(kv_heads=2, races=False, **options):
    """The kernel with blocks of two pages of 8, compiled once for all tests."""
    interpret = interpret_of("tpu", pltpu.InterpretParams(detect_races=races))
    tiles = TpuTiles(
        kv_heads=kv_heads, short_positions=16, long_positions=16, long_rows=16, writes=4
    )

    def call(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tpu, "tpu_tiles_for", lambda _: tiles)
            choices = Options(scale=0.25, **options)
            return tpu.attend_and_count(*arguments, None, None, None, choices, interpret)

    return jax.jit(call)


def attend_and_count(batch, **options):
    """Output, pages and the number of pages fetched."""
    pages = init_kv_pages(
        batch.kv_pages.num_pages, 8, 2, 16, batch.kv_pages.dtype, implementation="tpu"
    )
    ids = jnp.arange(batch.kv_pages.num_pages, dtype=jnp.int32)
    pages = pages.write(ids, *batch.kv_pages.read(ids, jnp.ones(ids.shape, bool)))
    arguments = jax.block_until_ready(batch.where(kv_pages=pages).arguments)
    return jax.block_until_ready(counting(**options)(*arguments))


@pytest.mark.interpreted
@pytest.mark.parametrize(
    ("row", "window", "fetched"),
    [
        # Positions 0 .. 89 lie in pages 0 .. 11.
        ((1, 90), None, 12),
        # Position 89 sees 85 .. 89: page 10 holds 80 .. 87.
        ((1, 90), 5, 2),
        # Position 87 sees 83 .. 87.
        ((1, 88), 5, 1),
        # Four queries a block: 64 .. 67 see from page 7 on, 68 and 69 only page 8.
        ((6, 70), 5, (8 - 7 + 1) + (8 - 8 + 1)),
    ],
)
def test_no_page_before_the_window_is_fetched(row, window, fetched, batch_of):
    _, _, count = attend_and_count(batch_of([row]), sliding_window=window)
    assert int(count[0]) == fetched


@pytest.mark.interpreted
def test_no_page_beyond_what_a_block_of_queries_sees_is_fetched(batch_of):
    # Queries 0 .. 3, 4 .. 7 and so on to 16 .. 19 see the pages of 8 up to their own.
    _, _, count = attend_and_count(batch_of([(20, 20), (1, 0)]), sliding_window=None)
    assert int(count[0]) == 1 + 1 + 2 + 2 + 3


@pytest.mark.interpreted
def test_entries_that_are_no_page_are_not_fetched(batch_of):
    batch = batch_of([(1, 90)])
    table = batch.page_table_SM.at[0, 3].set(0).at[0, 7].set(-1).at[0, 8].set(2**31 - 1)
    _, _, count = attend_and_count(batch.where(page_table_SM=table), sliding_window=None)
    assert int(count[0]) == 12 - 3


@pytest.mark.interpreted
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_no_copy_races_another(kv_heads, batch_of, attend, assert_close, has_raced):
    """Written or not, for all kv heads at once or one after the other."""
    batch = batch_of([(1, 40), (9, 9), (1, 0), (6, 33), (1, 17)])
    out, _, count = attend_and_count(
        batch, races=True, kv_heads=kv_heads, update_kv_cache=kv_heads == 1
    )
    assert not has_raced()
    expected, _ = attend("reference", batch)
    assert_close(np.asarray(out), expected)
    groups = 2 // kv_heads
    # Chunks of 4 queries: 9 see 1, 1 and 2 pages, 33 lie in 5 and are seen by two chunks.
    assert int(count[0]) == groups * (5 + (1 + 1 + 2) + (4 + 5) + 3)


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        (
            (3, 8, 1, 64, "bfloat16"),
            r"page_size = 8 is not a power of two from 16 on, for bfloat16",
        ),
        ((3, 48, 1, 64, "float32"), r"page_size = 48 is not a power of two from 8 on"),
        ((3, 16, 1, 64, "float16"), r"pages of float16 are not one of float32, bfloat16"),
        ((3, 1024, 1, 256, "float32"), r"a page of 2097152 bytes a kv head is above 1048576"),
    ],
)
def test_pages_that_the_kernel_cannot_serve_are_refused(pool, message):
    with pytest.raises(NoImplementation, match=message):
        init_kv_pages(*pool, implementation="tpu")


def test_pages_go_with_the_implementation_that_made_them(batch_of):
    batch = batch_of([(1, 9)])
    with pytest.raises(NoImplementation, match=r"tpu: the pages have the layout of xla"):
        ragged_paged_attention(*batch.arguments, scale=1.0, implementation="tpu")
    pages = init_kv_pages(5, 8, 2, 16, "float32", implementation="tpu")
    with pytest.raises(NoImplementation, match=r"xla: the pages have the layout of tpu"):
        ragged_paged_attention(
            *batch.where(kv_pages=pages).arguments, scale=1.0, implementation="xla"
        )


@pytest.mark.skipif(jax.default_backend() == "tpu", reason="there it is chosen")
def test_nobody_gets_the_kernel_unasked_where_there_is_no_tpu():
    pages = init_kv_pages(3, 64, 1, 64, "bfloat16")
    assert not isinstance(pages, tpu_pages.TpuKVPages)


@pytest.mark.parametrize(
    ("head_dim", "width"), [(64, 128), (80, 256), (96, 256), (128, 256), (192, 384), (256, 512)]
)
def test_a_position_takes_no_more_lanes_than_its_key_and_value_need(head_dim, width):
    lanes = tpu_pages.lanes_of(head_dim)
    assert lanes.width == width
    assert lanes.key_width % 128 == lanes.value_register % 128 == 0
    assert lanes.value_start >= head_dim
    assert lanes.value_start + head_dim <= width
