"""The meaning against plain NumPy, and every implementation against the meaning."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import gather_latent_pages

ROWS = {
    "decode": [(1, 77), (1, 0), (1, 1), (1, 96), (1, 16), (1, 33)],
    "prefill": [(13, 13), (9, 9), (0, 0), (1, 1), (1, 0)],
    "mixed": [(1, 77), (9, 9), (1, 0), (7, 64), (1, 1), (3, 96)],
    "one chunk": [(24, 80)],
}
KINDS = {
    "float32": {},
    "bfloat16": {"pages_dtype": "bfloat16", "q_dtype": "bfloat16"},
    "float16 queries": {"q_dtype": "float16", "pages_dtype": "bfloat16"},
    "e4m3": {"pages_dtype": "float8_e4m3fn", "q_dtype": "bfloat16"},
    "e5m2": {"pages_dtype": "float8_e5m2"},
    "a register of latents": {"latent_rank": 128, "num_heads": 9},
    "more than a register": {"latent_rank": 136, "rope_dim": 16, "pages_dtype": "bfloat16"},
}
OPTIONS = {
    "bidirectional": {"causal": False},
    "unwritten": {"update_kv_cache": False},
    "bidirectional, unwritten": {"causal": False, "update_kv_cache": False},
}


def batch_of_kind(batch_of, rows, kind):
    """With the least pages of the TPU kernel: a register of 8 rows of 32 bits."""
    page_size = 32 // jnp.dtype(kind.get("pages_dtype", "float32")).itemsize
    return batch_of(rows, page_size=page_size, pages_per_row=96 // page_size, **kind)


def check(implementation, batch, options, dtype, attend, assert_close):
    expected, expected_pages = attend("reference", batch, **options)
    out, pages = attend(implementation, batch, **options)
    assert_close(out, expected, dtype)
    # As numbers: a float8 NaN that is moved between layouts may come back as another NaN.
    ids = jnp.arange(batch.latent_pages.num_pages, dtype=jnp.int32)
    for got, wanted in zip(
        *(gather_latent_pages(x, ids) for x in (pages, expected_pages)), strict=True
    ):
        np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(wanted, np.float32))


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_xla_equals_the_reference_on_latents_of_every_kind(
    kind, rows, batch_of, attend, assert_close
):
    batch = batch_of_kind(batch_of, rows, kind)
    check("xla", batch, {}, kind.get("q_dtype", "float32"), attend, assert_close)


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_xla_equals_the_reference_with_every_option(options, rows, batch_of, attend, assert_close):
    check("xla", batch_of(rows), options, "float32", attend, assert_close)


PROGRAMS = {
    "float32": ("float32", None),
    "bfloat16, bidirectional": ("bfloat16", "bidirectional"),
    "float16 queries, unwritten": ("float16 queries", "unwritten"),
    "e4m3": ("e4m3", None),
    "e5m2, bidirectional, unwritten": ("e5m2", "bidirectional, unwritten"),
    "a register of latents, unwritten": ("a register of latents", "unwritten"),
    "more than a register": ("more than a register", None),
}
ELSEWHERE = {"bfloat16, bidirectional", "a register of latents, unwritten"}
"""Each half of them is in another, or in a twin: slow."""
programs = pytest.mark.parametrize(
    ("kind", "option"),
    [
        pytest.param(*x, id=name, marks=pytest.mark.slow if name in ELSEWHERE else ())
        for name, x in PROGRAMS.items()
    ],
)


@pytest.fixture
def check_on_tpu(attend, assert_close, has_raced):
    def equals_the_reference_without_a_race(batch, options, dtype):
        raced = pltpu.InterpretParams(detect_races=True)
        check("tpu", batch, {**options, "interpret": raced}, dtype, attend, assert_close)
        assert not has_raced()

    return equals_the_reference_without_a_race


@pytest.mark.interpreted
@programs
def test_tpu_equals_the_reference_on_latents_of_every_kind(kind, option, batch_of, check_on_tpu):
    kind, options = KINDS[kind], OPTIONS.get(option, {})
    for rows in ROWS.values():
        batch = batch_of_kind(batch_of, rows, kind)
        check_on_tpu(batch, options, kind.get("q_dtype", "float32"))


@st.composite
def ragged_rows(draw, num_tokens: int = 24, num_slots: int = 6, max_len: int = 96):
    """Rows of every kind in any order: idle, decode, whole prompt, chunk of one."""
    rows, left = [], num_tokens
    for _ in range(draw(st.integers(1, num_slots))):
        kind = draw(st.sampled_from(("idle", "decode", "prompt", "chunk")))
        new = draw(st.integers(1, 13)) if kind in ("prompt", "chunk") else draw(st.integers(0, 1))
        new = 1 if kind == "decode" else new
        if new > left:
            continue
        left -= new
        cached = draw(st.integers(0, max_len - new)) if kind in ("decode", "chunk") else 0
        rows.append((new, 0 if kind == "idle" else cached + new))
    return rows


any_ragged_batch = given(rows=ragged_rows(), seed=st.integers(0, 99))


@programs
@settings(max_examples=8, suppress_health_check=list(HealthCheck))
@any_ragged_batch
def test_xla_equals_the_reference_on_any_ragged_batch(
    kind, option, rows, seed, batch_of, attend, assert_close
):
    kind, options = KINDS[kind], OPTIONS.get(option, {})
    batch = batch_of_kind(batch_of, rows, {"seed": seed, **kind})
    check("xla", batch, options, kind.get("q_dtype", "float32"), attend, assert_close)


@pytest.mark.interpreted
@programs
@settings(max_examples=8, suppress_health_check=list(HealthCheck))
@any_ragged_batch
def test_tpu_equals_the_reference_on_any_ragged_batch_without_a_race(
    kind, option, rows, seed, batch_of, check_on_tpu
):
    kind, options = KINDS[kind], OPTIONS.get(option, {})
    batch = batch_of_kind(batch_of, rows, {"seed": seed, **kind})
    check_on_tpu(batch, options, kind.get("q_dtype", "float32"))


def plain_attention(q_LNW, latents_LW, latent_rank, first_query, *, causal=True):
    """One row in float64, straight from the formula."""
    length = len(latents_LW)
    logits_tNL = 0.25 * np.einsum("tNW,LW->tNL", q_LNW, latents_LW)
    if causal:
        sees_tL = np.arange(length)[None, :] <= np.arange(first_query, length)[:, None]
        logits_tNL = np.where(sees_tL[:, None, :], logits_tNL, -np.inf)
    weights_tNL = np.exp(logits_tNL)
    weights_tNL /= weights_tNL.sum(axis=-1, keepdims=True)
    return np.einsum("tNL,LR->tNR", weights_tNL, latents_LW[:, :latent_rank])


@pytest.mark.parametrize("causal", [True, False])
def test_the_reference_equals_the_formula(causal, batch_of, attend, assert_close):
    batch = batch_of([(1, 0), (9, 30), (1, 17)])
    out, pages = attend("reference", batch, causal=causal)
    q = np.concatenate([batch.q_latent_TNR, batch.q_rope_TNr], axis=-1, dtype=np.float64)
    for row, tokens, length in ((1, slice(1, 10), 30), (2, slice(10, 11), 17)):
        latents = np.concatenate(
            gather_latent_pages(pages, batch.page_table_SM[row]), axis=-1, dtype=np.float64
        )
        latents = latents.reshape(-1, latents.shape[-1])[:length]
        first = length - (tokens.stop - tokens.start)
        expected = plain_attention(q[tokens], latents, 16, first, causal=causal)
        assert_close(out[tokens], expected.astype(np.float32))
    assert not out[0].any()
    assert not out[11:].any()


def test_queries_of_zeros_average_the_latents_and_no_rotary_part(batch_of, attend, assert_close):
    batch = batch_of([(4, 4)])
    silent = batch.where(
        q_latent_TNR=jnp.zeros_like(batch.q_latent_TNR), q_rope_TNr=jnp.zeros_like(batch.q_rope_TNr)
    )
    out, _ = attend("reference", silent, causal=False)
    average = np.asarray(batch.latent_TR[:4]).mean(axis=0)
    assert_close(out[:4], np.broadcast_to(average, (4, 3, 16)))
