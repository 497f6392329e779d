"""What must leave no trace in a row's numbers: neighbours, slots, pages, zones, chunks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROWS = [(1, 90), (9, 9), (1, 0), (6, 70), (1, 17)]


def tokens_of(rows, row):
    start = sum(new for new, _ in rows[:row])
    return slice(start, start + rows[row][0])


TPU = pytest.param("tpu", marks=pytest.mark.interpreted)


@pytest.mark.parametrize("implementation", ["xla", TPU])
@pytest.mark.parametrize("row", [0, 1, 3, 4])
@pytest.mark.parametrize(("pages_dtype", "page_size"), [("float32", 8), ("bfloat16", 16)])
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


@pytest.mark.parametrize("implementation", ["xla", TPU])
def test_no_neighbour_however_long_moves_a_row_into_other_numbers(implementation, batch_of, attend):
    rows = [(1, 1), (1, 95), (1, 40), (1, 96), (1, 33)]
    content = lambda row: np.random.default_rng((5, rows[row][1]))  # noqa: E731
    expected, _ = attend(implementation, batch_of(rows, content=content))
    rows = [rows[i] for i in (3, 2, 4, 0, 1)]
    out, _ = attend(implementation, batch_of(rows, content=content))
    np.testing.assert_array_equal(out[:5], expected[[3, 2, 4, 0, 1]])


@pytest.mark.parametrize("implementation", ["xla", TPU])
def test_zones_are_hints_that_never_change_a_result(
    implementation, batch_of, attend, assert_same_pages
):
    rows = [(1, 90), (1, 0), (9, 9), (3, 3), (6, 70)]
    batch = batch_of(rows)
    expected, expected_pages = attend(implementation, batch)
    for zones in ([2, 4, 5], [0, 0, 5], [1, 1, 5], [2, 3, 5]):
        hinted = batch.where(distribution_3=jnp.asarray(zones, jnp.int32))
        out, pages = attend(implementation, hinted)
        np.testing.assert_array_equal(out, expected)
        assert_same_pages(pages, expected_pages)


@pytest.mark.parametrize("implementation", ["xla", TPU])
@pytest.mark.parametrize(
    ("rows", "zones"), [([(1, 90), (1, 0), (1, 5)], [3, 3, 3]), ([(9, 9), (1, 1)], [0, 2, 2])]
)
def test_zones_known_when_compiling_give_the_same_result(
    rows, zones, implementation, batch_of, attend, assert_close
):
    batch = batch_of(rows)
    expected, _ = attend("reference", batch)
    out, _ = attend(implementation, batch, zones=tuple(zones))
    assert_close(out, expected)


@pytest.mark.parametrize("implementation", ["xla", "reference", TPU])
def test_rows_beyond_the_last_zone_are_padding(implementation, batch_of, attend, assert_same_pages):
    batch = batch_of(ROWS)
    garbage = batch.where(
        kv_lens_S=batch.kv_lens_S.at[2:].set(1 << 30),
        page_table_SM=batch.page_table_SM.at[2:].set(jnp.int32(3)),
        cu_q_lens_S1=batch.cu_q_lens_S1.at[3:].set(jnp.int32(-7)),
        distribution_3=jnp.asarray([0, 0, 2], jnp.int32),
    )
    expected, expected_pages = attend(implementation, batch_of(ROWS[:2]))
    out, pages = attend(implementation, garbage)
    np.testing.assert_array_equal(out, expected)
    owned = np.asarray(batch.page_table_SM[:2]).ravel()
    for leaf, wanted in zip(jax.tree.leaves(pages), jax.tree.leaves(expected_pages), strict=True):
        np.testing.assert_array_equal(leaf[owned], wanted[owned])


@pytest.mark.parametrize("implementation", [TPU])
def test_a_row_that_claims_the_tokens_of_another_does_not_change_it(
    implementation, batch_of, attend
):
    rows = [(16, 20), (0, 0), (16, 18)]
    batch = batch_of(rows, num_tokens=32)
    borders = batch.cu_q_lens_S1.at[1:].set(jnp.asarray([16, 4, 20, 20, 20, 20], jnp.int32))
    expected, expected_pages = attend(implementation, batch_of(rows[:1], num_tokens=32))
    out, pages = attend(implementation, batch.where(cu_q_lens_S1=borders))
    np.testing.assert_array_equal(out[:4], expected[:4])
    theirs = np.asarray(batch.page_table_SM[0])
    for leaf, wanted in zip(jax.tree.leaves(pages), jax.tree.leaves(expected_pages), strict=True):
        np.testing.assert_array_equal(leaf[theirs[theirs > 0]], wanted[theirs[theirs > 0]])


@pytest.mark.parametrize("implementation", ["xla", "reference", TPU])
@pytest.mark.parametrize(("pages_dtype", "page_size"), [("float32", 8), ("bfloat16", 16)])
def test_a_prompt_in_chunks_equals_the_whole_prompt(
    implementation, pages_dtype, page_size, batch_of, attend, assert_close, assert_same_pages
):
    whole = batch_of([(23, 23)], pages_dtype=pages_dtype, page_size=page_size)
    expected, expected_pages = attend(implementation, whole)
    pages, start = whole.kv_pages, 0
    for end in (1, 12, 13, 20, 23):
        part = slice(start, end)
        pad = ((0, 24 - (end - start)), (0, 0), (0, 0))
        q, k, v = (
            jnp.pad(x[part], pad, constant_values=jnp.nan)
            for x in (whole.q_TNH, whole.k_TKH, whole.v_TKH)
        )
        chunk = whole.where(
            q_TNH=q,
            k_TKH=k,
            v_TKH=v,
            kv_pages=pages,
            kv_lens_S=whole.kv_lens_S.at[0].set(end),
            cu_q_lens_S1=jnp.minimum(whole.cu_q_lens_S1, end - start),
        )
        out, pages = attend(implementation, chunk)
        assert_close(out[: end - start], expected[part])
        start = end
    assert_same_pages(pages, expected_pages)


@pytest.mark.parametrize("implementation", ["xla", "reference", TPU])
def test_unwritten_keys_and_values_count_as_if_written_and_leave_the_pages_alone(
    implementation, batch_of, attend, assert_close, assert_same_pages
):
    batch = batch_of(ROWS, pages_dtype="bfloat16", page_size=16)
    expected, _ = attend(implementation, batch)
    out, pages = attend(implementation, batch, update_kv_cache=False)
    assert_close(out, expected)
    assert_same_pages(pages, batch.kv_pages)


@pytest.mark.parametrize("implementation", ["xla", "reference", TPU])
def test_a_layer_without_keys_reads_what_another_layer_wrote(
    implementation, batch_of, attend, assert_same_pages
):
    batch = batch_of(ROWS)
    expected, written = attend(implementation, batch)
    reader = batch.where(k_TKH=None, v_TKH=None, kv_pages=written)
    out, pages = attend(implementation, reader)
    np.testing.assert_array_equal(out, expected)
    assert_same_pages(pages, written)


@pytest.mark.parametrize("implementation", ["xla", "reference", TPU])
def test_pages_before_the_window_may_be_given_away(implementation, batch_of, attend):
    batch = batch_of([(1, 90), (6, 70)])
    expected, _ = attend(implementation, batch, sliding_window=5)
    table = batch.page_table_SM.at[0, : 85 // 8].set(0).at[1, : 59 // 8].set(0)
    out, _ = attend(implementation, batch.where(page_table_SM=table), sliding_window=5)
    np.testing.assert_array_equal(out, expected)


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


@pytest.mark.parametrize("implementation", ["xla", "reference", TPU])
@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("row", [3, 4])
def test_a_broken_row_touches_no_other_row(
    row, broken, implementation, batch_of, attend, assert_same_pages
):
    rows = [(1, 90), (9, 9), (1, 0), (6, 70), (3, 17)]
    batch = batch_of(rows)
    without = batch.where(kv_lens_S=batch.kv_lens_S.at[row].set(0))
    expected, expected_pages = attend(implementation, without)
    (name, value), *_ = broken.items()
    out, pages = attend(
        implementation, batch.where(**{name: getattr(batch, name).at[row].set(value)})
    )
    others = np.ones(24, bool)
    others[tokens_of(rows, row)] = False
    np.testing.assert_array_equal(out[others], expected[others])
    assert not out[~others].any()
    assert_same_pages(pages, expected_pages)
