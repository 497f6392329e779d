"""The Hopper kernel against the meaning, on small batches."""

import functools
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pallas_kernels import gather_latent_pages
from pallas_kernels.latent_attention import gpu_kernel, gpu_tuning
from tests.pallas_kernels.independence import FALLING, all_broken, falling

pytestmark = pytest.mark.interpreted

ROWS = {
    "decode": [(1, 70), (1, 0), (1, 1), (1, 200), (1, 64)],
    "prompt and chunk": [(9, 9), (3, 130)],
    "mixed": [(1, 129), (0, 0), (12, 12), (5, 80), (1, 30)],
}
UNWRITTEN = {"update_kv_cache": False}
PROGRAMS = {
    "bfloat16": ({}, {}),
    "float16 for float32 queries, bidirectional": (
        {"pages_dtype": "float16", "q_dtype": "float32", "rope_dim": 32},
        {"causal": False},
    ),
    "float16, unwritten": ({"pages_dtype": "float16", "q_dtype": "float16"}, UNWRITTEN),
    "bidirectional, unwritten": ({"rope_dim": 32}, {"causal": False, **UNWRITTEN}),
}
"""What a batch is made of, and the options. Tests that share sizes share these programs, whose
making is most of the time."""
SLOW = {"bidirectional, unwritten"}
programs = pytest.mark.parametrize(
    ("made_of", "options"),
    [
        pytest.param(*x, id=name, marks=pytest.mark.slow if name in SLOW else ())
        for name, x in PROGRAMS.items()
    ],
)


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
    def equals_the_reference(batch, dtype="bfloat16", like=None, **options):
        """``like``: what the reference is given, where it is another batch."""
        expected, expected_pages = attend("reference", like or batch, **options)
        out, pages = attend("gpu", batch, **options)
        assert_close(out, expected, dtype)
        ids = jnp.arange(1, pages.num_pages, dtype=jnp.int32)  # Nobody owns page 0.
        assert_same_pages(*(gather_latent_pages(x, ids) for x in (pages, expected_pages)))

    return equals_the_reference


@programs
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_gpu_equals_the_reference(rows, made_of, options, batch_of, check):
    check(small(batch_of, rows, **made_of), **options)


def test_rows_with_one_token_are_split_and_joined(batch_of, check, monkeypatch):
    heuristic = gpu_tuning.heuristic
    monkeypatch.setattr(gpu_tuning, "heuristic", lambda x: replace(heuristic(x), min_split=1))
    # Four parts, three, one, and one that is a hole; the heads make it a program of its own.
    batch = small(batch_of, [(1, 250), (1, 190), (1, 1), (1, 70)], num_heads=3)
    check(batch.where(page_table_SM=batch.page_table_SM.at[3, 1].set(0)))


@pytest.mark.slow
def test_long_rows_are_split_and_many_heads_grouped_over_the_grid(batch_of, check, monkeypatch):
    monkeypatch.setattr(gpu_kernel, "INTERPRETED_BLOCKS", 2)
    sizes = {"latent_rank": 512, "num_heads": 96, "page_size": 128, "pages_per_row": 6}
    check(small(batch_of, [(1, 700), (3, 400), (1, 290)], **sizes))


@programs
def test_a_position_in_no_page_is_not_seen(made_of, options, batch_of, check):
    batch = small(batch_of, [(1, 190), (6, 180), (9, 130), (1, 65)], **made_of)
    table = batch.page_table_SM.at[0, 2].set(0).at[1, 1].set(9_999).at[2, 2].set(-1)
    check(batch.where(page_table_SM=table), **options)


def test_what_the_pages_hold_is_read_without_new_latents(batch_of, attend, assert_close):
    batch = small(batch_of, [(1, 70), (4, 100)])
    expected, pages = attend("reference", batch)
    reader = batch.where(latent_pages=pages, latent_TR=None, rope_Tr=None)
    out, _ = attend("gpu", reader)
    assert_close(out, expected, "bfloat16")


def test_a_row_equals_itself_among_other_rows_bit_for_bit(batch_of, attend):
    rows = [(1, 150), (5, 80), (1, 30)]
    among, _ = attend("gpu", small(batch_of, rows))
    # Both in another order, each beside a neighbour that is not there among them.
    order = [(0, 0), rows[1], (2, 70), rows[0]]
    alone = small(
        batch_of,
        order,
        page_seed=7,
        content=lambda slot: np.random.default_rng((0, {1: 1, 3: 0}.get(slot, 9))),
    )
    out, _ = attend("gpu", alone)
    np.testing.assert_array_equal(out[:5], among[1:6])
    np.testing.assert_array_equal(out[7], among[0])


def test_broken_rows_of_every_kind_count_as_idle(batch_of, check):
    broken, without = all_broken(functools.partial(small, batch_of), 64, 4)
    check(broken, like=without)


@pytest.mark.parametrize("borders", FALLING)
def test_a_row_that_claims_the_tokens_of_another_is_idle(borders, batch_of, check):
    broken, without = falling(functools.partial(small, batch_of), borders)
    check(broken, like=without)


@st.composite
def ragged_rows(draw):
    """Five rows of every kind in any order, of which one takes part: few are tried, and the first
    would be of idle ones only."""
    rows, left = [], 24
    for _ in range(5):
        new = min(draw(st.sampled_from((0, 1, 1, 5, 11))), left)
        left -= new
        cached = draw(st.one_of(st.just(0), st.integers(0, 256 - new)))
        rows.append((new, 0 if draw(st.integers(0, 5)) == 5 or not new else cached + new))
    assume(any(length for _, length in rows))
    return rows


@programs
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=ragged_rows(),
    seed=st.integers(0, 99),
    hole=st.tuples(st.integers(0, 4), st.integers(0, 3), st.sampled_from((0, -1, 9_999))),
)
def test_any_ragged_batch(made_of, options, rows, seed, hole, batch_of, check):
    batch = small(batch_of, rows, seed=seed, **made_of)
    row, page, no_page = hole
    taking_part = [row for row, (_, length) in enumerate(rows) if length]
    row = taking_part[row % len(taking_part)]
    page %= -(-rows[row][1] // 64)
    check(batch.where(page_table_SM=batch.page_table_SM.at[row, page].set(no_page)), **options)


@pytest.mark.slow
def test_positions_beyond_sixteen_bits_are_not_folded(batch_of, check):
    sizes = {"page_size": 256, "pages_per_row": 260, "num_slots": 2, "num_heads": 1}
    check(small(batch_of, [(1, 66_000), (2, 300)], num_tokens=3, **sizes))
