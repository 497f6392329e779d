"""Plain XLA at the sizes it really has: blocks and tiles of more than one page and row."""

import jax
import numpy as np
import pytest

from pallas_kernels import init_latent_pages, latent_attention

ROWS = [(1, 600), (70, 330), (1, 0), (1, 255), (40, 40), (3, 513)]
SIZES = {"num_tokens": 128, "num_heads": 8, "pages_per_row": 40}


def run(implementation, batch, zones=None, **options):
    """Blocks are those of production: the fixture ``attend`` makes them small."""
    *arguments, distribution = batch.arguments
    options |= {"scale": 0.25, "implementation": implementation}
    zones = distribution if zones is None else np.asarray(zones, np.int32)
    call = jax.jit(lambda *arrays: latent_attention(*arrays, zones, **options))
    out, pages = call(*arguments)
    return np.asarray(out), pages


@pytest.mark.parametrize("page_size", [16, 24])
@pytest.mark.parametrize(
    "options",
    [{}, {"causal": False}, {"update_kv_cache": False}],
    ids=["causal", "bidirectional", "unwritten"],
)
def test_long_rows_equal_the_reference(
    options, page_size, batch_of, assert_close, assert_same_pages
):
    batch = batch_of(ROWS, page_size=page_size, **SIZES)
    expected, expected_pages = run("reference", batch, **options)
    out, pages = run("xla", batch, **options)
    assert_close(out, expected)
    assert_same_pages(pages, expected_pages)


@pytest.mark.parametrize(
    ("rows", "zones"),
    [([(1, 600), (1, 0), (1, 31), (1, 640)], [4, 4, 4]), ([(70, 330), (40, 40)], [0, 1, 2])],
    ids=["decode", "prefill"],
)
def test_a_program_of_one_kind_of_rows_gives_the_same_numbers(rows, zones, batch_of):
    batch = batch_of(rows, page_size=16, **SIZES)
    expected, _ = run("xla", batch)
    out, _ = run("xla", batch, zones)
    np.testing.assert_array_equal(out, expected)


def test_rows_of_deepseeks_width_in_another_order_keep_every_bit(batch_of):
    rows = [(1, 600), (9, 300), (1, 40), (30, 60)]
    starts = [0, 1, 10, 11]
    sizes = SIZES | {"num_heads": 16, "latent_rank": 512, "rope_dim": 64, "num_tokens": 64}
    call = jax.jit(lambda *arrays: latent_attention(*arrays, scale=0.05, implementation="xla"))
    expected, _ = call(*batch_of(rows, page_size=16, pages_dtype="bfloat16", **sizes).arguments)
    for seed, order in enumerate([(3, 2, 1, 0), (1,), (2, 0)]):
        batch = batch_of(
            [rows[i] for i in order],
            page_size=16,
            pages_dtype="bfloat16",
            page_seed=seed,
            content=lambda slot, order=order: np.random.default_rng((0, order[slot])),
            **sizes,
        )
        out, start = call(*batch.arguments)[0], 0
        for i in order:
            num_new = rows[i][0]
            np.testing.assert_array_equal(
                out[start : start + num_new], expected[starts[i] : starts[i] + num_new]
            )
            start += num_new


@pytest.mark.parametrize(("zones", "num_loops"), [([6, 6, 6], 2), ([0, 6, 6], 2), (None, 4)])
def test_a_part_that_no_row_needs_is_not_compiled(zones, num_loops, batch_of):
    batch = batch_of([(1, 9)] * 6, page_size=16, **SIZES)
    *arguments, distribution = batch.arguments
    zones = distribution if zones is None else np.asarray(zones, np.int32)
    call = jax.jit(
        lambda *arrays: latent_attention(*arrays, zones, scale=0.25, implementation="xla")
    )
    assert call.lower(*arguments).as_text().count("stablehlo.while") == num_loops


def test_deepseeks_heads_need_temporaries_of_a_few_blocks_whatever_the_table_holds(batch_of):
    """A table of 128k positions a row costs integers, not latents."""

    def temporaries(pages_per_row):
        batch = batch_of([(1, 9)] * 4, num_tokens=4, num_slots=4, num_heads=16, page_size=64)
        table = jax.ShapeDtypeStruct((4, pages_per_row), np.int32)
        pages = jax.eval_shape(lambda: init_latent_pages(100, 64, 512, 64, "bfloat16"))
        shapes = [(4, 16, 512), (4, 16, 64), (4, 512), (4, 64)]
        tokens = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
        zones = np.asarray([4, 4, 4], np.int32)
        call = jax.jit(
            lambda pages, table, *tokens: latent_attention(
                *tokens, pages, batch.kv_lens_S, table, batch.cu_q_lens_S1, zones, scale=0.25
            ),
            donate_argnums=0,
        )
        return call.lower(pages, table, *tokens).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(2048) - temporaries(64) < 4 * 4 * 2048 * 4
