"""Rows cut into tiles: every query of a row that is cut is in one of them, and in no other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.paging.tiles import list_tiles
from tests.pallas_kernels.described import described_rows

LENS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 1000)), min_size=3, max_size=3).map(
    lambda rows: [(new, max(new, length) if new else 0) for new, length in rows]
)


@settings(max_examples=20, deadline=None)
@pytest.mark.parametrize("tile_size", [1, 8])
@given(lens=LENS)
def test_tiles_hold_every_query_of_their_rows_once(tile_size, lens):
    rows = described_rows(lens)
    num_tiles, tiles = list_tiles(rows, rows.q_lens_S > 1, tile_size)
    found = []
    for tile in zip(*(np.asarray(x)[: int(num_tiles)] for x in tiles), strict=True):
        row, token, position, queries = map(int, tile)
        assert 0 < queries <= tile_size
        found += [(row, token + i, position + i) for i in range(queries)]
    expected, start = [], 0
    for row, (new, length) in enumerate(lens):
        if new > 1:
            expected += [(row, start + i, length - new + i) for i in range(new)]
        start += new
    assert found == expected
    assert int(num_tiles) == sum(-(-new // tile_size) for new, _ in lens if new > 1)
