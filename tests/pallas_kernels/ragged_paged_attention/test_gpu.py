"""The Hopper kernel against the meaning, on small batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pallas_kernels import gather_kv_pages
from pallas_kernels.ragged_paged_attention import gpu_kernel
from tests.pallas_kernels.batches import tokens_of
from tests.pallas_kernels.independence import FALLING, all_broken, falling
from tests.pallas_kernels.on_chip import needs_an_interpreter

pytestmark = pytest.mark.interpreted

SINKS = (0.5, -1.0, 3.0, 0.0, 1.0, 2.0)
SCALES = {"k_scale_K": (0.03, 0.025), "v_scale_K": (0.02, 0.03)}
ROWS = {
    "decode": [(1, 70), (1, 0), (1, 1), (1, 200), (1, 64)],
    "prompt and chunk": [(9, 9), (3, 130)],
    "mixed": [(1, 129), (0, 0), (12, 12), (5, 80), (1, 30)],
}
PROGRAMS = {
    "bfloat16": ({}, {}),
    "float16, window": ({"pages_dtype": "float16"}, {"sliding_window": 50}),
    "e5m2, softcap and sinks": (
        {"pages_dtype": "float8_e5m2"},
        {"logit_softcap": 2.0, "sinks_N": SINKS},
    ),
    "bidirectional, unwritten": ({}, {"causal": False, "update_kv_cache": False}),
}
"""What a batch is made of, and the options. Tests that share sizes share these programs, whose
making is most of the time."""
programs = pytest.mark.parametrize(("made_of", "options"), PROGRAMS.values(), ids=PROGRAMS)


def small(batch_of, rows, **options):
    sizes = {"head_dim": 64, "page_size": 64, "pages_per_row": 4, "num_slots": 5, "num_tokens": 24}
    return batch_of(rows, **{"pages_dtype": "bfloat16", "q_dtype": "bfloat16", **sizes, **options})


@pytest.fixture
def check(attend, assert_close):
    def equals_the_reference(batch, dtype="bfloat16", like=None, **options):
        """``like``: what the reference is given, where it is another batch."""
        expected, expected_pages = attend("reference", like or batch, **options)
        out, pages = attend("gpu", batch, **options)
        assert_close(out, expected, dtype)
        assert_same_numbers(pages, expected_pages)

    return equals_the_reference


def assert_same_numbers(pages, expected):
    """In all pages but 0, which nobody owns; as numbers, for a NaN may become another NaN."""
    ids = jnp.arange(1, pages.num_pages, dtype=jnp.int32)
    for got, wanted in zip(*(gather_kv_pages(x, ids) for x in (pages, expected)), strict=True):
        np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(wanted, np.float32))


@programs
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_gpu_equals_the_reference(rows, made_of, options, batch_of, check):
    check(small(batch_of, rows, **made_of), **options)


# A product of 192 columns is more than one.
@pytest.mark.parametrize(("head_dim", "page_size"), [(80, 128), (192, 256)])
def test_heads_of_another_width_on_pages_of_several_blocks(head_dim, page_size, batch_of, check):
    sizes = {"head_dim": head_dim, "page_size": page_size, "pages_per_row": 2, "group_size": 1}
    check(small(batch_of, [(1, 150), (4, 140)], **sizes))


PAGES = {
    "int8": ({"pages_dtype": "int8"}, {"sliding_window": 50, **SCALES}),
    "e4m3": ({"pages_dtype": "float8_e4m3fn", "head_dim": 96}, SCALES),
    "e5m2, unwritten": ({"pages_dtype": "float8_e5m2"}, {"update_kv_cache": False}),
}


@pytest.mark.parametrize(
    ("pages", "options"),
    [
        pytest.param(*x, id=name, marks=pytest.mark.slow if "unwritten" in name else ())
        for name, x in PAGES.items()
    ],
)
def test_pages_of_eight_bits(pages, options, batch_of, check):
    check(small(batch_of, ROWS["mixed"], **pages), **options)


def test_float32_pages_keep_sixteen_bits(batch_of, check):
    float32 = {"pages_dtype": "float32", "q_dtype": "float32"}
    check(small(batch_of, ROWS["mixed"], **float32), "two bfloat16", logit_softcap=2.0)


def test_a_loop_converts_the_widest_float32_keys(batch_of, check):
    float32 = {"pages_dtype": "float32", "q_dtype": "float32"}
    sizes = {"head_dim": 256, "group_size": 1, "num_tokens": 2, "num_slots": 2}
    check(small(batch_of, [(1, 70), (1, 5)], **sizes, **float32), "two bfloat16")


@pytest.mark.slow
def test_float16_pages_take_float32_queries(batch_of, check):
    check(small(batch_of, [(1, 70), (3, 5)], pages_dtype="float16", q_dtype="float32"))


def test_tiles_of_two_warpgroups(batch_of, check):
    rows, sizes = [(70, 150), (1, 3), (40, 40)], {"num_tokens": 120, "num_slots": 3}
    check(small(batch_of, rows, **sizes))


def test_a_kv_head_with_more_query_heads_than_a_tile_has_rows(batch_of, check):
    sizes = {"num_kv_heads": 1, "group_size": 71, "num_tokens": 4, "num_slots": 2}
    check(small(batch_of, [(1, 70), (3, 5)], **sizes), sinks_N=tuple(np.linspace(-2, 2, 71)))


@programs
def test_a_position_in_no_page_is_not_seen(made_of, options, batch_of, check):
    batch = small(batch_of, [(1, 190), (6, 180)], **made_of)
    table = batch.page_table_SM.at[0, 2].set(0).at[1, 1].set(9_999)
    check(batch.where(page_table_SM=table), **options)


@pytest.fixture
def fetched(monkeypatch):
    """The pages that the kernel's copies ask for, as it runs."""
    needs_an_interpreter("which pages are fetched")
    pages, copy = set(), gpu_kernel.plgpu.copy_gmem_to_smem

    def observed(source, target, barrier):
        page, *rest = source.transforms[0].indices
        if len(rest) == 3:  # Queries have one axis more.
            jax.debug.callback(lambda page: pages.add(int(page)), page)
        return copy(source, target, barrier)

    monkeypatch.setattr(gpu_kernel.plgpu, "copy_gmem_to_smem", observed)
    return pages


def test_pages_that_nobody_sees_are_not_fetched(fetched, batch_of, attend):
    """Which are holes, what lies before the window and what lies beyond the row."""
    # Sizes of no other test: a program that exists already would not be observed.
    batch = small(batch_of, [(1, 190), (6, 180), (1, 250)], num_slots=3)
    table = batch.page_table_SM.at[0, 2].set(0).at[1, 1].set(9_999)
    attend("gpu", batch.where(page_table_SM=table), sliding_window=70)
    jax.effects_barrier()
    table = np.asarray(batch.page_table_SM)
    assert fetched == {table[0, 1], table[1, 2], table[2, 2], table[2, 3]}


def test_a_window_behind_more_than_a_thousand_pages(batch_of, check):
    sizes = {"num_slots": 2, "num_tokens": 6, "num_kv_heads": 1, "pages_per_row": 1_100}
    check(small(batch_of, [(1, 70_001), (5, 70_300)], **sizes), sliding_window=70)


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


def test_a_row_equals_itself_among_other_rows_bit_for_bit(batch_of, attend):
    rows = ROWS["mixed"]
    among, _ = attend("gpu", small(batch_of, rows))
    # Two of them in other slots, beside a neighbour that is not there among the others.
    alone_rows, slots = [rows[3], (0, 0), (2, 70), rows[0]], {0: 3, 3: 0}
    alone = small(
        batch_of,
        alone_rows,
        page_seed=7,
        content=lambda slot: np.random.default_rng((0, slots.get(slot, 9))),
    )
    out, _ = attend("gpu", alone)
    for slot, row in slots.items():
        np.testing.assert_array_equal(out[tokens_of(alone_rows, slot)], among[tokens_of(rows, row)])


def test_broken_rows_of_every_kind_count_as_idle(batch_of, check):
    broken, without = all_broken(functools.partial(small, batch_of), 64, 4)
    check(broken, like=without)


@pytest.mark.parametrize("borders", FALLING)
def test_a_row_that_claims_the_tokens_of_another_is_idle(borders, batch_of, check):
    broken, without = falling(functools.partial(small, batch_of), borders)
    check(broken, like=without)
