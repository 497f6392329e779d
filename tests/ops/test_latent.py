"""Latent attention: the absorbed and the expanded form are one attention, row by row."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.batch import Ragged, decode_ragged
from jaxinfer.config import LatentSpec, NormSpec, RopeSpec
from jaxinfer.errors import ConfigError
from jaxinfer.ops import chunk, latent
from jaxinfer.ops.latent import Heads, attend_latents, expansion_pays_from
from jaxinfer.ops.latent_expanded import attend_expanded
from pallas_kernels import LatentPages, fill_latent_pages, init_latent_pages
from sharding import make_mesh

SPEC = LatentSpec(
    num_heads=4,
    kv_rank=16,
    nope_dim=12,
    rope_dim=8,
    value_dim=10,
    rope=RopeSpec(theta=1e4, rotary_dim=8),
    latent_norm=NormSpec(),
)
NUM_TOKENS, PAGE, PAGES_PER_ROW, NUM_SLOTS = 112, 8, 6, 7
#: Rounding of float32, of sums in another order.
CLOSE = {"rtol": 0.0, "atol": 2e-6}
#: (new tokens, length after): decode rows, prompts with nothing cached, chunks with a past, idle;
#: the last has so many tokens that making keys and values of its past pays.
ROWS = [(1, 20), (19, 19), (1, 1), (9, 0), (7, 30), (17, 17), (37, 47)]
LONG, SHORT = 10**6, 1


def normal(seed: tuple[int, ...], *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def heads_of(q: np.ndarray) -> Heads:
    """Queries ``[T, N, h + r]`` with matrices that are always the same."""
    n, h, r, v = SPEC.num_heads, SPEC.nope_dim, SPEC.kv_rank, SPEC.value_dim
    return Heads(
        q_nope_TNh=jnp.asarray(q[..., :h]),
        q_rope_TNr=jnp.asarray(q[..., h:]),
        k_up_NhR=jnp.asarray(0.3 * normal((1,), n, h, r)),
        v_up_NRv=jnp.asarray(0.3 * normal((2,), n, r, v)),
    )


def blank_pages(num_slots: int = NUM_SLOTS) -> LatentPages:
    """All of it NaN."""
    num_pages = 1 + num_slots * PAGES_PER_ROW
    pages = init_latent_pages(num_pages, PAGE, SPEC.kv_rank, SPEC.rope_dim, "float32")
    return fill_latent_pages(pages, jnp.arange(num_pages), np.nan)


TABLE = jnp.asarray(1 + np.arange(NUM_SLOTS * PAGES_PER_ROW, dtype=np.int32).reshape(NUM_SLOTS, -1))


@functools.cache
def program(expanded_from: int, tile: int, devices: int = 1):
    """``attend_latents`` of one step, traced with these sizes."""
    mesh = make_mesh({"model": devices})

    def step(pages, heads, new, ragged):
        return attend_latents(SPEC, heads, *new, pages, TABLE, ragged, mesh=mesh)

    def run(*arguments):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(latent, "EXPANDED_FROM", expanded_from)
            patch.setattr(chunk, "TILE", tile)
            patch.setattr(latent, "BLOCK", tile)
            return jitted(*arguments)

    jitted = jax.jit(step)
    return run


def step_of(
    rows: list[tuple[int, int]], content: list[int]
) -> tuple[Heads, tuple[jax.Array, jax.Array], Ragged]:
    """A step of these rows. ``content`` seeds what each of them holds, the beginning of a longer
    row being that of a shorter one. What is no row's is NaN.
    """
    size, rank = SPEC.query_dim, SPEC.kv_rank
    q = np.full((NUM_TOKENS, SPEC.num_heads, size), np.nan, np.float32)
    new = np.full((NUM_TOKENS, rank + SPEC.rope_dim), np.nan, np.float32)
    borders, lens = np.zeros(NUM_SLOTS + 1, np.int32), np.zeros(NUM_SLOTS, np.int32)
    for i, (num_new, length) in enumerate(rows):
        begin, end = borders[i], borders[i] + num_new
        borders[i + 1 :], lens[i] = end, length
        if length:
            q[begin:end] = normal((3, content[i]), length, SPEC.num_heads, size)[-num_new:]
            new[begin:end] = normal((4, content[i]), length, rank + SPEC.rope_dim)[-num_new:]
    ragged = Ragged(
        kv_lens_S=jnp.asarray(lens),
        cu_q_lens_S1=jnp.asarray(borders),
        distribution_3=jnp.asarray([0, 0, len(rows)], jnp.int32),
    )
    return heads_of(q), (jnp.asarray(new[:, :rank]), jnp.asarray(new[:, rank:])), ragged


def run_rows(rows, content, *, expanded_from: int, tile: int = 8, devices: int = 1):
    """What a step gives, by row, and the pages; the past of its rows was written before."""
    run = program(expanded_from, tile, devices)
    pasts = [(length - new, length - new) if length else (0, 0) for new, length in rows]
    _, pages = run(blank_pages(), *step_of(pasts, content))
    heads, new, ragged = step_of(rows, content)
    out, pages = run(pages, heads, new, ragged)
    borders = np.asarray(ragged.cu_q_lens_S1)
    *parts, padding = np.split(np.asarray(out), borders[1 : len(rows) + 1])
    assert not padding.any()
    return parts, pages


CONTENT = [10, 11, 12, 13, 14, 15, 16]


@pytest.mark.parametrize("tile", [8, 128])
def test_both_forms_are_one_attention(tile: int) -> None:
    expected, pages = run_rows(ROWS, CONTENT, expanded_from=LONG)
    parts, expanded_pages = run_rows(ROWS, CONTENT, expanded_from=SHORT, tile=tile)
    for (_, length), part, wanted in zip(ROWS, parts, expected, strict=True):
        assert np.abs(wanted).max() > 0.1 if length else not wanted.any()
        np.testing.assert_allclose(part, wanted, **CLOSE)
    np.testing.assert_array_equal(expanded_pages.latents_PpW, pages.latents_PpW)


def test_a_past_is_expanded_where_its_row_has_enough_new_tokens() -> None:
    """By counting products: of a chunk of c tokens, and pasts of any length."""

    def heads(rank: int, nope_dim: int, value_dim: int) -> Heads:
        up = [
            jax.ShapeDtypeStruct(s, jnp.float32)
            for s in ((2, nope_dim, rank), (2, rank, value_dim))
        ]
        return Heads(None, None, *up)  # type: ignore[arg-type]

    def saved(rank: int, nope_dim: int, value_dim: int, new: int, past: int) -> int:
        pairs, made = new * past, past * rank * (nope_dim + value_dim)
        return pairs * 2 * rank - (pairs * (nope_dim + value_dim) + made)

    for sizes in ((512, 128, 128), (16, 12, 10), (20, 12, 10)):
        least = expansion_pays_from(heads(*sizes))
        assert least is not None
        for past in (1, 1000):
            assert saved(*sizes, least, past) >= 0 > saved(*sizes, least - 1, past)
    assert expansion_pays_from(heads(512, 128, 128)) == 171
    assert expansion_pays_from(heads(16, 20, 12)) is None
    assert 17 < expansion_pays_from(heads(16, 12, 10)) <= ROWS[-1][0]


def test_decoding_is_what_making_all_keys_and_values_anew_gives() -> None:
    rows = [(1, 20), (1, 1), (1, 0), (1, 48), (1, 33), (1, 8), (1, 4)]
    _, pages = run_rows(rows, CONTENT, expanded_from=LONG)
    heads, new, _ = step_of(rows, CONTENT)
    queries = [x[:NUM_SLOTS] for x in (heads.q_nope_TNh, heads.q_rope_TNr)]
    heads, new = Heads(*queries, *heads[2:]), [x[:NUM_SLOTS] for x in new]
    kv_lens_S = jnp.asarray([length for _, length in rows], jnp.int32)
    mesh = make_mesh()
    out, pages = attend_latents(
        SPEC, heads, *new, pages, TABLE, decode_ragged(kv_lens_S), mesh=mesh
    )
    expected = attend_expanded(heads, pages, TABLE, kv_lens_S, scale=SPEC.softmax_scale)
    assert not np.asarray(expected)[2].any()
    np.testing.assert_allclose(out, expected, **CLOSE)


@pytest.mark.parametrize("row", [0, 1, 4, 5, 6])
def test_a_row_alone_equals_itself_among_others_bit_for_bit(row: int) -> None:
    among, _ = run_rows(ROWS, CONTENT, expanded_from=SHORT)
    for slot in (0, 2):
        rows, content = [(0, 0)] * slot + [ROWS[row]], [0] * slot + [CONTENT[row]]
        alone, _ = run_rows(rows, content, expanded_from=SHORT)
        np.testing.assert_array_equal(alone[slot], among[row])


def test_two_devices_with_half_of_the_heads_each_give_what_one_gives() -> None:
    expected, pages = run_rows(ROWS, CONTENT, expanded_from=SHORT)
    parts, split_pages = run_rows(ROWS, CONTENT, expanded_from=SHORT, devices=2)
    for part, wanted in zip(parts, expected, strict=True):
        np.testing.assert_allclose(part, wanted, **CLOSE)
    np.testing.assert_array_equal(split_pages.latents_PpW, pages.latents_PpW)


def test_heads_that_do_not_divide_over_the_devices_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_heads = 4 does not divide over"):
        run_rows(ROWS, CONTENT, expanded_from=SHORT, devices=3)


@pytest.mark.parametrize("tokens", [64, 512])
def test_temporaries_do_not_grow_with_the_pool_and_the_pool_is_reused(tokens: int) -> None:
    def analysis(num_pages: int):
        pages = jax.eval_shape(lambda: init_latent_pages(num_pages, 8, 16, 8, "bfloat16"))
        q = [jax.ShapeDtypeStruct((tokens, 4, n), jnp.bfloat16) for n in (12, 8)]
        up = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((4, 12, 16), (4, 16, 10))]
        new = [jax.ShapeDtypeStruct((tokens, n), jnp.bfloat16) for n in (16, 8)]
        _, _, ragged = step_of(ROWS[:-1], CONTENT)

        def step(pages, heads, new):
            mesh = make_mesh()
            return attend_latents(SPEC, heads, *new, pages, TABLE, ragged, mesh=mesh)

        lowered = jax.jit(step, donate_argnums=0).lower(pages, Heads(*q, *up), new)
        return lowered.compile().memory_analysis()

    small, large = analysis(100), analysis(5000)
    assert large.temp_size_in_bytes == small.temp_size_in_bytes
    assert large.alias_size_in_bytes == 5000 * 8 * 24 * 2
