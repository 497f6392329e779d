"""The list of visits covers each row once, in order, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pallas_kernels.grouped_matmul.visits import list_visits

NUM_ROWS = 70
list_compiled = jax.jit(list_visits, static_argnames=("num_rows", "tile", "align", "has_padding"))
any_sizes = st.lists(
    st.one_of(st.integers(0, 24), st.integers(-(2**31), 2**31 - 1)), min_size=6, max_size=6
)


def owners(sizes):
    """The group of each row; 6 for padding."""
    owner, start = np.full(NUM_ROWS, 6), 0
    for group, size in enumerate(sizes):
        end = min(start + max(size, 0), NUM_ROWS)
        owner[start:end] = group
        start = end
    return owner


@pytest.mark.parametrize("align", [1, 8, 16])
@pytest.mark.parametrize("has_padding", [True, False])
@given(sizes=any_sizes)
@example(sizes=[1] * 6)
@example(sizes=[0] * 6)
@example(sizes=[7, 9, 1, 1, 1, 51])
@settings(max_examples=60, deadline=None)
def test_every_row_is_visited_once_by_its_group(align, has_padding, sizes):
    tile = 16
    visits = list_compiled(
        jnp.asarray(sizes, jnp.int32),
        num_rows=NUM_ROWS,
        tile=tile,
        align=align,
        has_padding=has_padding,
    )
    count = int(visits.count_1[0])
    assert count <= visits.group_V.size
    owner = owners(sizes)
    visited = np.zeros(NUM_ROWS, int)
    before = -1
    for group, row, start, end in zip(
        *(np.asarray(x)[:count].tolist() for x in visits[1:]), strict=True
    ):
        assert row >= before
        assert row % align == 0
        own = range(max(row, start), min(row + tile, end))
        assert len(own) > 0
        assert (owner[list(own)] == group).all()
        visited[list(own)] += 1
        before = row
    # Aligned tiles that hold a row of a group are cleared by its visit: no visit for their padding.
    total = (owner < 6).sum()
    first_padding = -(-total // tile) * tile if align == tile else total
    expected = np.ones(NUM_ROWS, int)
    expected[total : first_padding if has_padding else NUM_ROWS] = 0
    np.testing.assert_array_equal(visited, expected)
