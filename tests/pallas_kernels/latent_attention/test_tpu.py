"""What only the TPU kernel promises: which pages it fetches, in what order its copies run, sizes
that leave no trace, and whom it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import NoImplementation, init_latent_pages, latent_attention
from pallas_kernels.latent_attention import tpu, tpu_tuning
from pallas_kernels.latent_attention.tpu_pages import TpuLatentPages
from pallas_kernels.paging.options import Options
from tests.pallas_kernels.on_chip import interpret_of

TILES = tpu_tuning.Tiles(short_positions=16, long_tokens=4, long_positions=16)


def attend_and_count(batch, interpret=True, tiles=TILES, **options):
    """Output, pages and the number of pages fetched, with blocks of two pages of 8."""
    interpret = interpret_of("tpu", interpret)
    theirs = batch.latent_pages
    sizes = (theirs.num_pages, theirs.page_size, theirs.latent_rank, theirs.rope_dim)
    pages = init_latent_pages(*sizes, theirs.dtype, implementation="tpu")
    ids = jnp.arange(theirs.num_pages, dtype=jnp.int32)
    pages = pages.write(ids, *theirs.read(ids, jnp.ones(ids.shape, bool)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tpu_tuning, "tiles_for", lambda _: tiles)
        arguments = batch.where(latent_pages=pages).arguments
        call = jax.jit(
            lambda *a: tpu.attend_and_count(*a, Options(scale=0.25, **options), interpret)
        )
        return jax.block_until_ready(call(*jax.block_until_ready(arguments)))


@pytest.mark.interpreted
def test_every_page_of_a_decode_row_is_fetched_once(batch_of):
    # Positions 0 .. 89 lie in 12 pages, position 0 in one.
    _, _, count = attend_and_count(batch_of([(1, 90), (1, 0), (1, 1)]))
    assert int(count[0]) == 12 + 1


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
@pytest.mark.parametrize(("latent_rank", "updates"), [(128, True), (16, False)])
def test_no_copy_races_another(updates, latent_rank, batch_of, has_raced):
    rows = [(1, 40), (9, 9), (1, 0), (6, 33), (1, 17)]
    batch = batch_of(rows, latent_rank=latent_rank)
    raced = pltpu.InterpretParams(detect_races=True)
    out, _, _ = attend_and_count(batch, raced, update_kv_cache=updates)
    assert np.isfinite(np.asarray(out)).all()
    assert not has_raced()


@pytest.mark.interpreted
@pytest.mark.parametrize(
    "tiles",
    [
        tpu_tuning.Tiles(short_positions=64, long_tokens=1, long_positions=8),
        pytest.param(
            tpu_tuning.Tiles(short_tokens=2, short_positions=8, long_tokens=8, long_positions=32),
            marks=pytest.mark.slow,
        ),
        tpu_tuning.Tiles(short_tokens=4, short_positions=32, long_tokens=32, long_positions=64),
    ],
    ids=str,
)
def test_sizes_of_blocks_change_no_result(tiles, batch_of, attend, assert_close):
    batch = batch_of([(1, 77), (9, 9), (1, 0), (7, 64), (2, 33), (4, 96)])
    expected, _ = attend("reference", batch)
    out, _, _ = attend_and_count(batch, tiles=tiles)
    assert_close(np.asarray(out), expected)


@pytest.mark.interpreted
def test_positions_beyond_sixteen_bits_are_not_folded(batch_of, attend, assert_close):
    batch = batch_of(
        [(1, 40_000), (3, 66_000)],
        num_tokens=4,
        num_slots=2,
        num_heads=1,
        latent_rank=8,
        rope_dim=4,
        page_size=256,
        pages_per_row=260,
    )
    expected, _ = attend("reference", batch)
    tiles = tpu_tuning.Tiles(short_positions=8192, long_tokens=4, long_positions=8192)
    out, _, _ = attend_and_count(batch, tiles=tiles)
    assert_close(np.asarray(out), expected)


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ((3, 8, 512, 64, "bfloat16"), r"page_size = 8 is not a power of two from 16 on, for bfl"),
        ((3, 48, 512, 64, "float32"), r"page_size = 48 is not a power of two from 8 on"),
        ((3, 16, 512, 64, "float16"), r"pages of float16 are not one of float32, bfloat16"),
        ((3, 16, 2048, 64, "bfloat16"), r"latent_rank \+ rope_dim = 2112 is above 2048"),
        ((3, 4096, 512, 64, "float32"), r"a page of 10485760 bytes is above 8388608"),
    ],
)
def test_pages_that_the_kernel_cannot_serve_are_refused(pool, message):
    with pytest.raises(NoImplementation, match=message):
        init_latent_pages(*pool, implementation="tpu")


def test_more_heads_than_fit_are_refused(batch_of):
    batch = batch_of([(1, 9)], num_heads=257)
    pages = init_latent_pages(5, 8, 16, 8, "float32", implementation="tpu")
    with pytest.raises(NoImplementation, match=r"257 query heads on a device are more than 256"):
        latent_attention(*batch.where(latent_pages=pages).arguments, scale=1.0)


@pytest.mark.skipif(jax.default_backend() == "tpu", reason="there it is chosen")
def test_nobody_gets_the_kernel_unasked_where_there_is_no_tpu():
    assert not isinstance(init_latent_pages(3, 64, 512, 64, "bfloat16"), TpuLatentPages)


def test_a_position_takes_whole_registers():
    pages = init_latent_pages(3, 64, 512, 64, "bfloat16", implementation="tpu")
    assert pages.latents_PpW.shape == (3, 64, 640)
    assert (pages.latent_rank, pages.rope_dim) == (512, 64)
