"""What must leave no trace in a row's numbers: neighbours, slots, pages, zones, chunks.

These are the tests of every attention over pages, which imports them and brings its fixtures.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.pallas_kernels.batches import tokens_of

ROWS = [(1, 90), (9, 9), (1, 0), (6, 70), (1, 17)]
IMPLEMENTATIONS = ["reference", "xla", pytest.param("tpu", marks=pytest.mark.interpreted)]
STORED = [("float32", 8), ("bfloat16", 16)]
CASES = [
    ("reference", "float32"),
    ("xla", "float32"),
    ("xla", "bfloat16"),  # the CPU may have other code for it
    pytest.param("tpu", "float32", marks=pytest.mark.interpreted),
]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("row", [0, 1, 3, 4])
@pytest.mark.parametrize(("pages_dtype", "page_size"), STORED)
def test_a_row_alone_equals_itself_among_others_bit_for_bit(
    row, pages_dtype, page_size, implementation, batch_of, attend
):
    together = batch_of(ROWS, pages_dtype=pages_dtype, page_size=page_size)
    among, _ = attend(implementation, together)
    for slot in (0, 3):
        alone_rows = [(0, 0)] * slot + [ROWS[row]]
        alone = batch_of(
            alone_rows,
            pages_dtype=pages_dtype,
            page_size=page_size,
            page_seed=7,
            content=lambda _: np.random.default_rng((0, row)),
        )
        out, _ = attend(implementation, alone)
        np.testing.assert_array_equal(out[tokens_of(alone_rows, slot)], among[tokens_of(ROWS, row)])


@pytest.mark.parametrize(("implementation", "pages_dtype"), CASES)
def test_zones_are_hints_that_never_change_a_result(
    implementation, pages_dtype, batch_of, attend, assert_same_pages
):
    batch = batch_of([(1, 90), (1, 0), (9, 9), (3, 3), (6, 70)], pages_dtype=pages_dtype)
    expected, expected_pages = attend(implementation, batch)
    for zones in ([2, 4, 5], [0, 0, 5], [1, 1, 5], [2, 3, 5]):
        hinted = batch.where(distribution_3=jnp.asarray(zones, jnp.int32))
        out, pages = attend(implementation, hinted)
        np.testing.assert_array_equal(out, expected)
        assert_same_pages(pages, expected_pages)


@pytest.mark.parametrize(("implementation", "pages_dtype"), CASES)
def test_rows_beyond_the_last_zone_are_padding(implementation, pages_dtype, batch_of, attend):
    batch = batch_of(ROWS, pages_dtype=pages_dtype)
    garbage = batch.where(
        kv_lens_S=batch.kv_lens_S.at[2:].set(1 << 30),
        page_table_SM=batch.page_table_SM.at[2:].set(jnp.int32(3)),
        cu_q_lens_S1=batch.cu_q_lens_S1.at[3:].set(jnp.int32(-7)),
        distribution_3=jnp.asarray([0, 0, 2], jnp.int32),
    )
    expected, expected_pages = attend(implementation, batch_of(ROWS[:2], pages_dtype=pages_dtype))
    out, pages = attend(implementation, garbage)
    np.testing.assert_array_equal(out, expected)
    owned = np.asarray(batch.page_table_SM[:2]).ravel()
    for leaf, wanted in zip(jax.tree.leaves(pages), jax.tree.leaves(expected_pages), strict=True):
        np.testing.assert_array_equal(leaf[owned], wanted[owned])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("pages_dtype", "page_size"), STORED)
def test_a_prompt_in_chunks_equals_the_whole_prompt(
    implementation, pages_dtype, page_size, batch_of, attend, assert_close, assert_same_pages
):
    whole = batch_of([(23, 23)], pages_dtype=pages_dtype, page_size=page_size)
    expected, expected_pages = attend(implementation, whole)
    pages, start = whole.pages, 0
    for end in (1, 12, 13, 20, 23):
        out, pages = attend(implementation, whole.chunk(start, end).on(pages))
        assert_close(out[: end - start], expected[start:end])
        start = end
    assert_same_pages(pages, expected_pages)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_what_is_unwritten_counts_as_if_written_and_leaves_the_pages_alone(
    implementation, batch_of, attend, assert_close, assert_same_pages
):
    batch = batch_of(ROWS, pages_dtype="bfloat16", page_size=16)
    expected, _ = attend(implementation, batch)
    out, pages = attend(implementation, batch, update_kv_cache=False)
    assert_close(out, expected)
    assert_same_pages(pages, batch.pages)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_new_position_in_no_page_is_not_seen_although_none_is_written(
    implementation, batch_of, attend, assert_close, assert_same_pages
):
    """Positions 89, 8 and 64 to 69 have none, which are new; 60 to 63 are new and have one."""
    batch = batch_of([(1, 90), (9, 9), (10, 70)])
    table = batch.page_table_SM.at[0, 11].set(0).at[1, 1].set(-1).at[2, 8].set(9_999)
    holes = batch.where(page_table_SM=table)
    expected, _ = attend("reference", holes)
    out, pages = attend(implementation, holes, update_kv_cache=False)
    assert_close(out, expected)
    assert_same_pages(pages, batch.pages)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_layer_without_its_own_reads_what_another_layer_wrote(
    implementation, batch_of, attend, assert_same_pages
):
    batch = batch_of(ROWS)
    expected, written = attend(implementation, batch)
    reader = batch.without_new().on(written)
    out, pages = attend(implementation, reader)
    np.testing.assert_array_equal(out, expected)
    assert_same_pages(pages, written)


@pytest.mark.parametrize(("implementation", "pages_dtype"), CASES)
def test_entries_that_are_no_page_are_not_seen(implementation, pages_dtype, batch_of, attend):
    batch = batch_of([(1, 90), (6, 70)], pages_dtype=pages_dtype)
    hole = batch.where(page_table_SM=batch.page_table_SM.at[:, 3].set(0))
    expected, _ = attend(implementation, hole)
    for no_page in (-1, 73, 2**31 - 1):
        table = batch.page_table_SM.at[:, 3].set(no_page)
        out, _ = attend(implementation, batch.where(page_table_SM=table))
        np.testing.assert_array_equal(out, expected)
    assert np.isfinite(expected[:7]).all()


@pytest.mark.parametrize(("implementation", "pages_dtype"), CASES)
@pytest.mark.parametrize("border", [25, 2**31 - 1])
def test_a_row_with_more_tokens_than_there_are_is_idle(
    border, implementation, pages_dtype, batch_of, attend, assert_same_pages
):
    batch = batch_of([(1, 90), (9, 9), (6, 70)], pages_dtype=pages_dtype)
    without = batch.where(kv_lens_S=batch.kv_lens_S.at[2].set(0))
    expected, expected_pages = attend(implementation, without)
    out, pages = attend(
        implementation, batch.where(cu_q_lens_S1=batch.cu_q_lens_S1.at[3:].set(border))
    )
    np.testing.assert_array_equal(out, expected)
    assert_same_pages(pages, expected_pages)


@pytest.mark.parametrize(("implementation", "pages_dtype"), CASES)
def test_a_row_with_tokens_before_the_first_is_idle(
    implementation, pages_dtype, batch_of, attend, assert_same_pages
):
    batch = batch_of([(1, 90), (9, 9), (6, 70)], pages_dtype=pages_dtype)
    without = batch.where(kv_lens_S=batch.kv_lens_S.at[0].set(0))
    expected, expected_pages = attend(implementation, without)
    borders = batch.cu_q_lens_S1.at[0].set(-3)
    out, pages = attend(implementation, batch.where(cu_q_lens_S1=borders))
    np.testing.assert_array_equal(out, expected)
    assert_same_pages(pages, expected_pages)


FALLING = [[16, 4, 20], [16, -(2**31), 20], [16, 4, 4]]
"""Borders of three rows, of which the third begins inside of the first, or before it."""


def falling(batch_of, borders, **sizes):
    """A batch with such borders, and the same with the first row alone."""
    batch = batch_of([(16, 20), (4, 9), (4, 18)], **sizes)
    more = batch.kv_lens_S.size - len(borders)
    borders = jnp.asarray([0, *borders, *borders[-1:] * more], jnp.int32)
    alone = batch.where(kv_lens_S=batch.kv_lens_S.at[1:].set(0))
    return batch.where(cu_q_lens_S1=borders), alone


@pytest.mark.parametrize(("implementation", "pages_dtype"), CASES)
@pytest.mark.parametrize("borders", FALLING)
def test_a_row_that_claims_the_tokens_of_another_is_idle(
    borders, implementation, pages_dtype, batch_of, attend, assert_same_pages
):
    broken, without = falling(batch_of, borders, pages_dtype=pages_dtype)
    expected, expected_pages = attend(implementation, without)
    out, pages = attend(implementation, broken)
    np.testing.assert_array_equal(out, expected)
    assert expected[:16].any()
    assert_same_pages(pages, expected_pages)


BROKEN = {
    "page ids beyond the pool": {"page_table_SM": 73},
    "huge page ids": {"page_table_SM": 2**31 - 1},
    "negative page ids": {"page_table_SM": -1},
    "no page ids": {"page_table_SM": 0},
    "a length beyond the table": {"kv_lens_S": 97},
    "a huge length": {"kv_lens_S": 2**31 - 1},
    "a negative length": {"kv_lens_S": -5},
    "more new tokens than its length": {"kv_lens_S": 2},
}


@pytest.mark.parametrize(("implementation", "pages_dtype"), CASES[:3])
@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("row", [3, 4])
def test_a_broken_row_touches_no_other_row(
    row, broken, implementation, pages_dtype, batch_of, attend, assert_same_pages
):
    rows = [(1, 90), (9, 9), (1, 0), (6, 70), (3, 17)]
    batch = batch_of(rows, pages_dtype=pages_dtype)
    without = batch.where(kv_lens_S=batch.kv_lens_S.at[row].set(0))
    expected, expected_pages = attend(implementation, without)
    ((name, value),) = broken.items()
    out, pages = attend(
        implementation, batch.where(**{name: getattr(batch, name).at[row].set(value)})
    )
    others = np.ones(24, bool)
    others[tokens_of(rows, row)] = False
    np.testing.assert_array_equal(out[others], expected[others])
    assert not out[~others].any()
    assert_same_pages(pages, expected_pages)


GOOD = [(1, 90), (9, 9), (1, 0), (6, 70), (1, 17), (0, 0)]
BAD = [(6, 70), (1, 33), (3, 17), (6, 41), (1, 17), (6, 70), (4, 10), (6, 90)]


def all_broken(batch_of, page_size=8, pages_per_row=12, **sizes):
    """A batch with a broken row of each kind, the last with more tokens than there are; and the
    same with idle rows in their places."""
    rows = [row for pair in zip(BAD, [*GOOD, *GOOD[:2]], strict=True) for row in pair] + [(2, 20)]
    batch = batch_of(
        rows,
        num_tokens=72,
        num_slots=len(rows) + 1,
        page_size=page_size,
        pages_per_row=pages_per_row,
        **sizes,
    )
    beyond = {73: batch.pages.num_pages, 97: pages_per_row * page_size + 1}
    broken, kv_lens = batch, batch.kv_lens_S.at[len(rows) - 1].set(0)
    for place, change in enumerate(BROKEN.values()):
        ((name, value),) = change.items()
        array = getattr(broken, name).at[2 * place].set(beyond.get(value, value))
        broken, kv_lens = broken.where(**{name: array}), kv_lens.at[2 * place].set(0)
    borders = batch.cu_q_lens_S1.at[len(rows) :].set(2**31 - 1)
    return broken.where(cu_q_lens_S1=borders), batch.where(kv_lens_S=kv_lens)


@pytest.mark.parametrize(("implementation", "pages_dtype"), CASES)
def test_broken_rows_of_every_kind_count_as_idle(
    implementation, pages_dtype, batch_of, attend, assert_same_pages
):
    broken, without = all_broken(batch_of, pages_dtype=pages_dtype)
    expected, expected_pages = attend(implementation, without)
    out, pages = attend(implementation, broken)
    np.testing.assert_array_equal(out, expected)
    assert_same_pages(pages, expected_pages)
    assert not out[:6].any()
    assert out[6].all()
