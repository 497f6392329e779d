"""What is checked has both ends of everything."""

import numpy as np
import pytest

from pallas_kernels.drawn import drawn


def test_few_are_all_drawn():
    np.testing.assert_array_equal(drawn([3, 0, 4], most=7), np.arange(7))


@pytest.mark.parametrize("most", [4, 50, 900])
def test_the_ends_of_each_run_are_drawn_and_others_up_to_the_most(most):
    found = drawn([1, 600, 0, 299], most=most)
    assert found.size == max(most, 5)
    assert (np.diff(found) > 0).all()
    assert {0, 1, 600, 601, 899} <= set(found.tolist())
    np.testing.assert_array_equal(found, drawn([1, 600, 0, 299], most=most))
