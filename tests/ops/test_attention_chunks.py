"""Attention within chunks: each part of a row is what plain attention over its chunk gives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.batch import Ragged, decode_ragged
from jaxinfer.config import AttentionSpec
from jaxinfer.errors import ConfigError
from jaxinfer.ops.attention import attend
from jaxinfer.ops.attention_chunks import rows_of_chunks
from pallas_kernels import fill_kv_pages, init_kv_pages
from sharding import make_mesh

CHUNK, PAGE, PAGES_PER_ROW, NUM_SLOTS, NUM_TOKENS = 16, 8, 6, 7, 120
SPEC = AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=8, chunk=CHUNK)
TABLE = 1 + np.arange(NUM_SLOTS * PAGES_PER_ROW, dtype=np.int32).reshape(NUM_SLOTS, -1)
#: (new tokens, length after): decode rows at the ends of chunks; a whole prompt; idle; chunks of
#: prompts that begin and end within chunks or at their borders.
ROWS = [(1, 17), (1, 16), (1, 0), (43, 43), (16, 16), (20, 36), (16, 48)]
CLOSE = {"rtol": 0.0, "atol": 2e-6}


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def of_row(row: int, length: int) -> list[np.ndarray]:
    """Queries, keys and values of a row's first tokens."""
    heads = (SPEC.num_heads, SPEC.num_kv_heads, SPEC.num_kv_heads)
    return [normal(3 * row + i, 48, n, SPEC.head_dim)[:length] for i, n in enumerate(heads)]


def plain(row: int, new: int, length: int) -> np.ndarray:
    """What the definition says of a row's new tokens."""
    q, k, v = (x.astype(np.float64) for x in of_row(row, length))
    k, v = (np.repeat(x, 2, axis=1) for x in (k, v))
    logits = np.einsum("THN,UHN->HTU", q, k) * SPEC.softmax_scale
    place = np.arange(length)
    sees = (place[:, None] >= place) & (place[:, None] // CHUNK == place // CHUNK)
    weights = np.exp(logits) * sees
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("HTU,UHN->THN", weights, v)[length - new :]


def tokens_of(rows: list[tuple[int, int]], num_tokens: int) -> list[jax.Array]:
    """The rows' new tokens end to end; what is no row's is NaN."""
    parts = [
        [
            x[length - new :] if length else np.full((new, *x.shape[1:]), np.nan)
            for x in of_row(i, length)
        ]
        for i, (new, length) in enumerate(rows)
    ]
    flat = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    return [
        jnp.asarray(
            np.pad(x, ((0, num_tokens - len(x)), (0, 0), (0, 0)), constant_values=np.nan),
            jnp.float32,
        )
        for x in flat
    ]


@functools.cache
def program(implementation: str):
    mesh = make_mesh()
    return jax.jit(
        lambda pages, table, ragged, *tokens: attend(
            SPEC, *tokens, pages, table, ragged, mesh=mesh, implementation=implementation
        )
    )


def blank_pages(implementation: str):
    num_pages = 1 + TABLE.size
    sizes = (num_pages, PAGE, SPEC.num_kv_heads, SPEC.head_dim, "float32")
    pages = init_kv_pages(*sizes, implementation=implementation)
    return fill_kv_pages(pages, jnp.arange(num_pages), np.nan)


def ragged_of(rows: list[tuple[int, int]], distribution: tuple[int, int, int]) -> Ragged:
    borders = np.cumsum([0, *(new for new, _ in rows)])
    return Ragged(
        kv_lens_S=jnp.asarray([length for _, length in rows], jnp.int32),
        cu_q_lens_S1=jnp.asarray(borders, jnp.int32),
        distribution_3=jnp.asarray(distribution, jnp.int32),
    )


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_each_token_sees_its_chunk_up_to_itself(implementation: str) -> None:
    run = program(implementation)
    pasts = [(length - new, length - new) if length else (0, 0) for new, length in ROWS]
    pages = blank_pages(implementation)
    _, pages = run(pages, TABLE, ragged_of(pasts, (0, 0, 7)), *tokens_of(pasts, NUM_TOKENS))
    # Pages of chunks that are over were given back.
    table = TABLE.copy()
    for row, (new, length) in enumerate(ROWS):
        table[row, : (length - new) // CHUNK * (CHUNK // PAGE)] = 0
    out, _ = run(pages, table, ragged_of(ROWS, (3, 5, 7)), *tokens_of(ROWS, NUM_TOKENS))
    begin = 0
    for row, (new, length) in enumerate(ROWS):
        part = np.asarray(out[begin : begin + new])
        begin += new
        expected = plain(row, new, length) if length else np.zeros_like(part)
        np.testing.assert_allclose(part, expected, **CLOSE)
    assert not np.asarray(out[begin:]).any()


def test_a_decode_step_has_as_many_rows_as_slots_and_one_chunk_of_pages() -> None:
    lens_S = jnp.asarray([1, 16, 17, 0, 48, 33, 32], jnp.int32)
    table_CM, ragged = rows_of_chunks(
        CHUNK, PAGE, NUM_SLOTS, jnp.asarray(TABLE), decode_ragged(lens_S)
    )
    assert ragged.fixed_distribution == (NUM_SLOTS,) * 3
    np.testing.assert_array_equal(ragged.kv_lens_S, [1, 16, 1, 0, 16, 1, 16])
    np.testing.assert_array_equal(ragged.cu_q_lens_S1, np.arange(NUM_SLOTS + 1))
    columns = [(0, 1), (0, 1), (2, 3), None, (4, 5), (4, 5), (2, 3)]
    expected = [[0, 0] if c is None else TABLE[row, list(c)] for row, c in enumerate(columns)]
    np.testing.assert_array_equal(table_CM, expected)


def test_zones_are_those_of_the_rows() -> None:
    _, ragged = rows_of_chunks(
        CHUNK, PAGE, NUM_TOKENS, jnp.asarray(TABLE), ragged_of(ROWS, (3, 5, 7))
    )
    # Rows of 43, 16, 20 and 16 tokens fall into 3, 1, 2 and 1 chunks.
    np.testing.assert_array_equal(ragged.distribution_3, [3, 7, 10])
    new = np.diff(ragged.cu_q_lens_S1)[:10]
    np.testing.assert_array_equal(new, [1, 1, 1, 16, 16, 11, 16, 16, 4, 16])
    np.testing.assert_array_equal(ragged.kv_lens_S[:10], [1, 16, 0, 16, 16, 11, 16, 16, 4, 16])
    assert not np.asarray(ragged.kv_lens_S[10:]).any()


def test_pages_that_reach_over_a_chunk_are_refused() -> None:
    with pytest.raises(ConfigError, match="page_size = 8 does not divide chunks of 12"):
        rows_of_chunks(12, PAGE, NUM_TOKENS, jnp.asarray(TABLE), ragged_of(ROWS, (3, 5, 7)))


def test_a_layer_has_a_window_or_chunks() -> None:
    with pytest.raises(ConfigError, match=r"chunk = 16.*None beside a window"):
        AttentionSpec(num_heads=4, num_kv_heads=2, head_dim=8, chunk=16, window=8)
