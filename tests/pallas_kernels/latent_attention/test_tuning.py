"""Sizes of blocks: what may stand in a table, and what the heuristic makes of real shapes."""

from dataclasses import replace

import pytest

from pallas_kernels.latent_attention.tpu_tuning import Problem, Tiles, heuristic

DEEPSEEK = Problem(
    case="mixed",
    num_heads=128,
    width=640,
    page_size=64,
    itemsize=2,
    q_itemsize=2,
    num_tokens=2048,
    pages_per_row=128,
)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"long_positions": 48}, r"long_positions = 48 is not a power of two"),
        ({"short_tokens": 0}, r"short_tokens = 0 is not a power of two"),
        ({"short_tokens": 8}, r"long_tokens = 4 is below short_tokens = 8"),
    ],
)
def test_other_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        Tiles(**{"short_positions": 64, "long_tokens": 4, "long_positions": 64, **sizes})


@pytest.mark.parametrize(
    ("changes", "short_positions", "long_tokens", "long_positions"),
    [
        # 512 rows of queries are 4 tokens of 128 heads.
        ({}, 1024, 4, 512),
        ({"num_heads": 16}, 1024, 32, 512),
        # No more tokens than there are.
        ({"num_heads": 16, "num_tokens": 9}, 1024, 8, 512),
        # No more positions than a row can have: 3 pages of 64.
        ({"pages_per_row": 3}, 128, 4, 128),
        # 2 MiB of positions: 2,048 lanes of 4 bytes each; as many bytes of queries.
        ({"width": 2048, "itemsize": 4, "q_itemsize": 4}, 256, 2, 256),
        ({"num_heads": 1024}, 1024, 1, 512),
    ],
)
def test_the_heuristic_fills_what_it_may(changes, short_positions, long_tokens, long_positions):
    assert heuristic(replace(DEEPSEEK, **changes)) == Tiles(
        short_positions=short_positions, long_tokens=long_tokens, long_positions=long_positions
    )
