"""New keys and values that are not written stand in copies of their pages."""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.ragged_paged_attention import gpu_unwritten
from pallas_kernels.ragged_paged_attention.gpu_pages import allocate_gpu_kv_pages
from tests.pallas_kernels.described import described_rows


def test_unwritten_tokens_are_put_into_copies_of_the_pages_they_belong_to():
    page_size, lens = 64, [(3, 65), (0, 0), (1, 64), (70, 130)]
    table = np.arange(1, 13, dtype=np.int32).reshape(4, 3)
    table[2, 0] = 0  # A position in no page stays in none.
    rows = described_rows(lens, num_tokens=80, table=table)
    pages = allocate_gpu_kv_pages(13, page_size, 1, 64, "bfloat16")
    fill = jnp.arange(13, dtype=jnp.bfloat16)[:, None, None, None]
    pages = jax.tree.map(lambda pool: pool + fill, pages)
    new = jnp.arange(100, 180, dtype=jnp.bfloat16)[:, None, None] * jnp.ones(
        (80, 1, 64), jnp.bfloat16
    )
    copies, moved = gpu_unwritten.beside(pages, rows, new, -new)
    expected_rows = {0: (62, 65, 0), 3: (60, 130, 4)}
    numbers = np.asarray(moved.page_table_SM)
    heads_PXpH = np.asarray(copies.heads_PXpH)
    np.testing.assert_array_equal(numbers[[1, 2]], np.asarray(rows.page_table_SM)[[1, 2]])
    assert numbers[0, 2] == table[0, 2]
    for row, (first, end, token) in expected_rows.items():
        for position in range(first // page_size * page_size, -(-end // page_size) * page_size):
            page, offset = numbers[row, position // page_size], position % page_size
            assert page > 13
            key = float(heads_PXpH[page - 13, 0, offset, 0])
            value = float(heads_PXpH[page - 13, 1, offset, 63])
            if first <= position < end:
                assert (key, value) == tuple(
                    float(jnp.bfloat16(sign * (100 + token + position - first))) for sign in (1, -1)
                )
            else:
                assert key == value == table[row, position // page_size]
