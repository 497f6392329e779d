"""What only the TPU kernel promises: which pages it fetches, in what order its copies run, and whom
it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import NoImplementation, init_kv_pages, ragged_paged_attention
from pallas_kernels.ragged_paged_attention import tpu, tpu_pages
from pallas_kernels.ragged_paged_attention.options import Options


def attend_and_count(batch, interpret=True, **options):
    """Output, pages and the number of pages fetched, with blocks of two pages of 8."""
    pages = init_kv_pages(
        batch.kv_pages.num_pages, 8, 2, 16, batch.kv_pages.dtype, implementation="tpu"
    )
    ids = jnp.arange(batch.kv_pages.num_pages, dtype=jnp.int32)
    pages = pages.write(ids, *batch.kv_pages.read(ids, jnp.ones(ids.shape, bool)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tpu, "BLOCK_POSITIONS", 16)
        patch.setattr(tpu, "BLOCK_ROWS", 16)
        arguments = batch.where(kv_pages=pages).arguments
        call = jax.jit(
            lambda *a: tpu.attend_and_count(
                *a, None, None, None, Options(scale=0.25, **options), interpret
            )
        )
        return jax.block_until_ready(call(*jax.block_until_ready(arguments)))


@pytest.mark.interpreted
@pytest.mark.parametrize(
    ("row", "window", "fetched"),
    [
        # Positions 0 .. 89 lie in pages 0 .. 11.
        ((1, 90), None, 12),
        # Position 89 sees 85 .. 89: pages 10 and 11.
        ((1, 90), 5, 2),
        # It sees 82 .. 89: page 10 holds 80 .. 87.
        ((1, 90), 8, 2),
        # It sees itself.
        ((1, 90), 1, 1),
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
    _, _, count = attend_and_count(batch_of([(20, 20), (1, 0)]))
    assert int(count[0]) == 1 + 1 + 2 + 2 + 3


@pytest.mark.interpreted
def test_entries_that_are_no_page_are_not_fetched(batch_of):
    batch = batch_of([(1, 90)])
    table = batch.page_table_SM.at[0, 3].set(0).at[0, 7].set(-1).at[0, 8].set(2**31 - 1)
    _, _, count = attend_and_count(batch.where(page_table_SM=table))
    assert int(count[0]) == 12 - 3


@pytest.mark.interpreted
@pytest.mark.parametrize("updates", [True, False])
def test_no_copy_races_another(updates, batch_of, capfd):
    batch = batch_of([(1, 40), (9, 9), (1, 0), (6, 33), (1, 17)])
    raced = pltpu.InterpretParams(detect_races=True)
    out, _, _ = attend_and_count(batch, raced, update_kv_cache=updates)
    assert np.isfinite(np.asarray(out)).all()
    # The interpreter has no other public way to tell.
    assert "RACE DETECTED" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        (
            (3, 8, 1, 64, "bfloat16"),
            r"page_size = 8 is not a power of two from 16 on, for bfloat16",
        ),
        ((3, 48, 1, 64, "float32"), r"page_size = 48 is not a power of two from 8 on"),
        ((3, 16, 1, 64, "float16"), r"pages of float16 are not one of float32, bfloat16"),
        ((3, 256, 64, 256, "float32"), r"a page of 33554432 bytes is above 8388608"),
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
