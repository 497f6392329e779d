"""What must leave no trace in a row's numbers: what it is for every attention, and more."""

import numpy as np
import pytest

from tests.pallas_kernels.independence import *  # noqa: F403

TPU = pytest.param("tpu", marks=pytest.mark.interpreted)


@pytest.mark.parametrize("implementation", ["xla", TPU])
def test_no_neighbour_however_long_moves_a_row_into_other_numbers(implementation, batch_of, attend):
    rows = [(1, 1), (1, 95), (1, 40), (1, 96), (1, 33)]
    content = lambda row: np.random.default_rng((5, rows[row][1]))  # noqa: E731
    expected, _ = attend(implementation, batch_of(rows, content=content))
    rows = [rows[i] for i in (3, 2, 4, 0, 1)]
    out, _ = attend(implementation, batch_of(rows, content=content))
    np.testing.assert_array_equal(out[:5], expected[[3, 2, 4, 0, 1]])


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


@pytest.mark.parametrize("implementation", ["xla", TPU])
def test_rows_that_the_known_zones_deny_are_zero_and_leave_no_trace(
    implementation, batch_of, attend, assert_close
):
    rows = [(1, 90), (9, 9), (1, 17)]
    batch = batch_of(rows)
    expected, _ = attend("reference", batch)
    out, _ = attend(implementation, batch, zones=(6, 6, 6))
    assert_close(out[[0, 10]], expected[[0, 10]])
    assert not out[1:10].any()
    assert not out[11:].any()


@pytest.mark.parametrize(("implementation", "pages_dtype"), CASES)  # noqa: F405
def test_pages_before_the_window_may_be_given_away(implementation, pages_dtype, batch_of, attend):
    batch = batch_of([(1, 90), (6, 70)], pages_dtype=pages_dtype)
    expected, _ = attend(implementation, batch, sliding_window=5)
    table = batch.page_table_SM.at[0, : 85 // 8].set(0).at[1, : 59 // 8].set(0)
    out, _ = attend(implementation, batch.where(page_table_SM=table), sliding_window=5)
    np.testing.assert_array_equal(out, expected)
