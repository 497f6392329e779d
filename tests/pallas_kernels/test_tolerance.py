"""Results are equal up to rounding, whatever their size, and no further."""

import numpy as np
import pytest

from pallas_kernels.tolerance import TOLERANCE, errors_of

ROWS = np.random.default_rng(0).normal(size=(4, 3, 50))


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_rounding_is_allowed_and_twice_the_tolerance_is_not(dtype, size):
    expected = size * ROWS
    up, down = (expected * (1 + sign * TOLERANCE[dtype] / 2) for sign in (1, -1))
    assert errors_of(np.where(ROWS > 0, up, down), expected, dtype)["error"] < 1
    errors = errors_of(expected * (1 + 2 * TOLERANCE[dtype]), expected, dtype)
    np.testing.assert_allclose(errors["row_error"], 2.0, rtol=1e-6)


def test_a_row_of_small_numbers_is_no_row_of_zeros():
    errors = errors_of(np.zeros_like(ROWS), 1e-3 * ROWS, "bfloat16")
    assert errors["error"] > 1
    np.testing.assert_allclose(errors["row_error"], 2**7)


def test_one_wrong_number_among_many_is_found():
    wrong = ROWS.copy()
    wrong[2, 1, 7] += 0.1
    assert errors_of(wrong, ROWS, "bfloat16")["error"] > 1


def test_zeros_allow_zeros_alone():
    zeros = np.zeros((2, 5))
    assert errors_of(zeros, zeros, "bfloat16") == {"error": 0.0, "row_error": 0.0}
    assert errors_of(np.full_like(zeros, 1e-6), zeros, "bfloat16")["error"] > 1


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_what_is_no_number_is_wrong(number):
    wrong = ROWS.copy()
    wrong[1, 0, 0] = number
    assert min(errors_of(wrong, ROWS, "bfloat16").values()) > 1e30


def test_cancelled_sums_may_be_off_near_zero():
    near = ROWS + 5e-5
    assert errors_of(near, ROWS, "float32")["error"] > 1
    assert errors_of(near, ROWS, "float32", near_zero="cancelled sums")["error"] < 1
