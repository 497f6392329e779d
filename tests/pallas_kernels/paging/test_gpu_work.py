"""What a Hopper kernel is told to fetch, without running it: blocks that are seen, all of them,
once, and nothing else."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.paging import gpu_units, gpu_work
from pallas_kernels.paging.options import Options
from pallas_kernels.paging.rows import token_pages
from tests.pallas_kernels.described import described, described_rows

TILES = SimpleNamespace(block=64, min_split=4, splits=(4, 32), wanted_units=264)
"""The sizes that both kernels have unless a table knows better."""
LANES = 8
FIELDS = ("out", "query", "row", "first_block", "num_blocks", "position", "kv_len", "is_whole")


def items_of(work):
    """The items that the kernel would take, as objects; the array is not read beyond its end."""
    (count,), items = np.asarray(work.num_items_1), np.asarray(work.items_I8)
    assert 0 <= count <= len(items)
    return [SimpleNamespace(**dict(zip(FIELDS, map(int, x), strict=True))) for x in items[:count]]


def splits_of(rows, options, page_size=64):
    positions = rows.page_table_SM.shape[1] * page_size
    splits = gpu_work.max_splits(TILES, rows.q_lens_S.size, 2, positions)
    counts_S = gpu_work.num_splits(TILES, options, rows, rows.q_lens_S == 1, splits)
    work = gpu_work.list_splits(TILES, options, rows, page_size, counts_S, splits)
    return items_of(work)


def tiles_of(rows, options, page_size=64):
    tiled = gpu_work.list_tiles(TILES, options, rows, page_size, rows.q_lens_S > 1, LANES)
    return items_of(tiled.work), tiled


def seen_blocks(positions, length, options):
    """Numbers of the blocks with a position that a token at one of ``positions`` sees."""
    seen = set()
    for position in positions:
        first = max(position - options.sliding_window + 1, 0) if options.sliding_window else 0
        last = min(position, length - 1) if options.causal else length - 1
        seen |= set(range(first // TILES.block, last // TILES.block + 1))
    return sorted(seen)


def fetched(items):
    return sorted(
        block for x in items for block in range(x.first_block, x.first_block + x.num_blocks)
    )


ROWS = st.lists(
    st.tuples(st.sampled_from((0, 1, 1, 2, 7, 20)), st.integers(0, 1000)), min_size=3, max_size=3
).map(lambda rows: [(new, max(length, new) if new else 0) for new, length in rows])
OPTIONS = st.builds(
    Options,
    scale=st.just(1.0),
    causal=st.booleans(),
    sliding_window=st.sampled_from((None, 1, 64, 100, 700)),
)


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, options=OPTIONS)
def test_every_row_is_given_the_blocks_that_it_sees_once(rows, options):
    all_rows = described_rows(rows)
    splits, (tiles, _) = splits_of(all_rows, options), tiles_of(all_rows, options)
    for row, (new, length) in enumerate(rows):
        if new == 1:
            items = [x for x in splits if x.row == row]
            assert fetched(items) == seen_blocks([length - 1], length, options)
            assert min(x.num_blocks for x in items) > 0
        for first in range(0, new if new > 1 else 0, LANES):
            [item] = [x for x in tiles if x.row == row and x.position == length - new + first]
            # A last tile that is not full counts as if it were, up to the end of the row.
            positions = range(item.position, min(item.position + LANES, length))
            assert fetched([item]) == seen_blocks(positions, length, options)
    assert len({x.out for x in splits}) == len(splits)
    assert sorted(x.out for x in tiles) == list(range(len(tiles)))
    for items in (splits, tiles):
        lengths = [x.num_blocks for x in items]
        assert lengths == sorted(lengths, reverse=True)


@pytest.mark.parametrize("num_units", [0, 1, 6, 7, 8, 13, 14, 15, 700, 703])
def test_blocks_of_a_grid_share_the_units_evenly(num_units):
    blocks, lengths = 7, np.sort(np.random.default_rng(num_units).integers(1, 500, num_units))[::-1]
    shares = [int(gpu_units.share_of(me, num_units, blocks)) for me in range(blocks)]
    taken = [
        [int(gpu_units.nth_unit(me, count, blocks)) for count in range(share)]
        for me, share in enumerate(shares)
    ]
    assert sorted(unit for units in taken for unit in units) == list(range(num_units))
    # Of two blocks one is ahead by a part of a unit that sinks from round to round: never by more
    # than the longest.
    work = [int(lengths[units].sum()) for units in taken]
    assert max(work) - min(work) <= (lengths[0] if num_units else 0)


def test_a_window_costs_its_own_pages_however_long_the_row_is():
    rows = described_rows([(1, 60_000), (1, 130), (3, 60_000)], pages_per_row=1000)
    options = Options(scale=1.0, sliding_window=128)
    assert len(fetched(splits_of(rows, options))) <= 2 * (128 // 64 + 1)
    tiles, _ = tiles_of(rows, options)
    assert len(fetched(tiles)) == 3
    everything = Options(scale=1.0)
    assert len(fetched(splits_of(rows, everything))) == 60_000 // 64 + 1 + 3


def test_a_million_positions_in_sixteen_thousand_pages():
    length = 2**20 - 5
    rows = described_rows([(1, length), (20, length)], pages_per_row=2**14)
    splits = splits_of(rows, Options(scale=1.0))
    assert fetched(splits) == list(range(2**14))
    assert {x.position for x in splits} == {length - 1}
    tiles, tiled = tiles_of(rows, Options(scale=1.0, sliding_window=100))
    assert sorted(x.position for x in tiles) == [length - 20, length - 12, length - 4]
    assert {x.first_block for x in tiles} == {(length - 20 - 99) // 64}
    np.testing.assert_array_equal(np.asarray(tiled.tile_T)[1:21], np.arange(20) // LANES)


@pytest.mark.parametrize("neighbour", [(0, 0), (1, 1000), (20, 900)])
def test_no_neighbour_changes_how_a_row_is_split(neighbour):
    def own(rows, row):
        items = splits_of(described_rows(rows), Options(scale=1.0))
        return [(x.first_block, x.num_blocks) for x in items if x.row == row]

    assert own([(1, 777), neighbour, neighbour], 0) == own([neighbour, neighbour, (1, 777)], 2)


RUBBISH = st.one_of(st.integers(-(2**31), 2**31 - 1), st.integers(-4, 70))


@settings(max_examples=60, deadline=None)
@given(
    kv_lens=st.lists(st.one_of(RUBBISH, st.integers(0, 1024)), min_size=3, max_size=3),
    borders=st.lists(RUBBISH, min_size=4, max_size=4),
    table=st.lists(RUBBISH, min_size=6, max_size=6),
)
def test_rubbish_stays_within_its_row_and_all_lists(kv_lens, borders, table):
    """Whatever the numbers are, items name what exists, and no two rows own a token."""
    sizes = {"num_tokens": 24, "page_size": 256, "pages_per_row": 2}
    rows = described(kv_lens, borders, table=np.asarray(table).reshape(3, 2), **sizes)
    options = Options(scale=1.0)
    tiles, tiled = tiles_of(rows, options, 256)
    splits = splits_of(rows, options, 256)
    for item in (*splits, *tiles):
        assert 0 <= item.row < 3
        assert 0 < item.kv_len <= 512
        blocks = item.first_block, item.first_block + item.num_blocks
        assert 0 <= blocks[0] < blocks[1] <= 512 // TILES.block
        assert item.position >= 0
    q_lens, starts = np.asarray(rows.q_lens_S), np.asarray(rows.q_starts_S)
    owners = [range(s, s + n) for s, n in zip(starts, q_lens, strict=True) if n > 0]
    tokens = [token for owned in owners for token in owned]
    assert len(set(tokens)) == len(tokens)
    assert set(np.flatnonzero(np.asarray(rows.is_token_T))) <= set(tokens) <= {*range(24)}
    num_tiles = tiled.token_Jt.shape[0]
    assert all(x.out < num_tiles and x.query < num_tiles for x in tiles)
    page_T, _ = token_pages(rows, 256)
    for token, page in enumerate(np.asarray(page_T)):
        owned = {0} | {int(x) for x in np.asarray(rows.page_table_SM)[rows.row_T[token]]}
        assert int(page) in owned
