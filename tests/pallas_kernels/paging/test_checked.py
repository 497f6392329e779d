"""Tokens drawn from a batch know where they are, and what they see."""

import numpy as np

from pallas_kernels.drawn import MOST
from pallas_kernels.paging.checked import drawn_tokens, places_of
from pallas_kernels.paging.specs import PagedSpec

SPEC = PagedSpec(rows=((1, 9), (1, 0), (3, 5)), page_size=4, max_len=16, num_tokens=7)


def test_a_token_sees_its_row_up_to_itself_and_padding_sees_nothing():
    table_SM = np.array([[7, 3, 5, 0], [0, 0, 0, 0], [2, 6, 0, 0]], np.int32)
    places = places_of(SPEC, table_SM)
    assert places.kv_len_T.tolist() == [9, 0, 3, 4, 5, 0, 0]
    assert places.page_T.tolist() == [5, 0, 2, 2, 6, 0, 0]
    assert places.offset_T[places.page_T > 0].tolist() == [0, 2, 3, 0]
    # No wider than the longest row.
    np.testing.assert_array_equal(places.page_table_TM[[0, 4, 5]], [[7, 3, 5], [2, 6, 0], [0] * 3])


def test_all_of_few_tokens_are_drawn_and_of_many_some_of_each_row_and_of_the_padding():
    assert drawn_tokens(SPEC).tolist() == list(range(7))
    long = PagedSpec(rows=((1, 3), (600, 640), (2, 2)), max_len=640, num_tokens=700)
    found = drawn_tokens(long)
    assert found.size == MOST
    assert {0, 1, 600, 601, 602, 603, 699} <= set(found.tolist())
