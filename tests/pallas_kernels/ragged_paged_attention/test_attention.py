"""The meaning against plain NumPy, and every implementation against the meaning."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels import gather_kv_pages, ragged_paged_attention
from pallas_kernels.ragged_paged_attention.specs import SPECS

SINKS = (0.5, -1.0, 3.0, 0.0, 1.0, 2.0)
SCALES = {"k_scale_K": (0.03, 0.025), "v_scale_K": (0.02, 0.03)}
OPTIONS = {
    "float32": {},
    "bfloat16": {"pages_dtype": "bfloat16", "q_dtype": "bfloat16"},
    "float16": {"pages_dtype": "float16", "q_dtype": "float16"},
    "window": {"sliding_window": 5},
    "bidirectional": {"causal": False},
    "bidirectional, unwritten": {"causal": False, "update_kv_cache": False},
    "everything": {
        "sliding_window": 19,
        "logit_softcap": 2.0,
        "sinks_N": SINKS,
        "pages_dtype": "int8",
        "q_dtype": "bfloat16",
        **SCALES,
    },
    "everything, unwritten": {
        "sliding_window": 19,
        "logit_softcap": 2.0,
        "sinks_N": SINKS,
        "update_kv_cache": False,
        "pages_dtype": "int8",
        **SCALES,
    },
    "fp8, scaled": {"pages_dtype": "float8_e4m3fn", "logit_softcap": 5.0, **SCALES},
    "fp8, plain": {"pages_dtype": "float8_e5m2", "sinks_N": SINKS},
}
#: What a CPU may have machine code for.
CPU_OPTIONS = {
    "bfloat16 pages, window, sinks": {
        "sliding_window": 19,
        "sinks_N": SINKS,
        "pages_dtype": "bfloat16",
        **SCALES,
    },
    "bfloat16, window, sinks": {
        "sliding_window": 19,
        "sinks_N": SINKS,
        "pages_dtype": "bfloat16",
        "q_dtype": "bfloat16",
    },
    "bfloat16, bidirectional": {
        "causal": False,
        "pages_dtype": "bfloat16",
        "q_dtype": "bfloat16",
        **SCALES,
    },
}
#: The reference, which is written to be read, takes seconds for these; for the others more.
SMALL_SPECS = {"smollm2-decode-1", "smollm2-decode-8", "gemma2-softcap", "gpt-oss-window-sinks"}


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


def split(options: dict, *sizes: str) -> tuple[dict, dict]:
    """What a batch is made of, and the options of a call."""
    made_of = {name: x for name, x in options.items() if name.endswith("dtype") or name in sizes}
    return made_of, {name: x for name, x in options.items() if name not in made_of}


@pytest.mark.parametrize("options", (OPTIONS | CPU_OPTIONS).values(), ids=OPTIONS | CPU_OPTIONS)
@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(rows=ragged_rows(), seed=st.integers(0, 99))
def test_xla_equals_the_reference_on_any_ragged_batch(
    options, rows, seed, batch_of, attend, assert_close, assert_same_pages
):
    dtypes, choices = split(options)
    batch = batch_of(rows, seed=seed, **dtypes)
    expected, expected_pages = attend("reference", batch, **choices)
    out, pages = attend("xla", batch, **choices)
    assert_close(out, expected, dtypes.get("q_dtype", "float32"))
    assert_same_pages(pages, expected_pages)


KINDS = [(1, 77), (13, 13), (1, 0), (7, 64), (1, 1), (1, 96)]
# Those of any ragged batch, bfloat16, which comes with real heads, and float16, which is refused.
ELSEWHERE = ("float32", "bfloat16", "float16", "window", "bidirectional", "fp8, plain")
TPU_OPTIONS = {name: x for name, x in OPTIONS.items() if name not in ELSEWHERE}
TPU_OPTIONS["wide registers"] = {"head_dim": 136, "sliding_window": 5, "sinks_N": SINKS}
TPU_OPTIONS["one float16 query a kv head"] = {
    "group_size": 1,
    "q_dtype": "float16",
    "logit_softcap": 2.0,
}


WITH_RACES = pltpu.InterpretParams(detect_races=True)


def assert_same_numbers(pages, expected):
    """Not bit for bit: a float8 NaN that is moved between layouts may come back as another NaN."""
    ids = jnp.arange(pages.num_pages, dtype=jnp.int32)
    for got, wanted in zip(*(gather_kv_pages(x, ids) for x in (pages, expected)), strict=True):
        np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(wanted, np.float32))


@pytest.mark.interpreted
@pytest.mark.parametrize(
    "options",
    [
        # A twin has fp8, and int8 has scales.
        pytest.param(x, id=name, marks=pytest.mark.slow if name == "fp8, scaled" else ())
        for name, x in TPU_OPTIONS.items()
    ],
)
def test_tpu_equals_the_reference_on_rows_of_every_kind(options, batch_of, attend, assert_close):
    sizes, choices = split(options, "head_dim", "group_size")
    # The least page is a register: 8 rows of 32 bits.
    page_size = 32 // jnp.dtype(sizes.get("pages_dtype", "float32")).itemsize
    for seed, rows in enumerate((KINDS, KINDS[::-1], [(24, 80)])):
        batch = batch_of(
            rows, seed=seed, page_size=page_size, pages_per_row=96 // page_size, **sizes
        )
        expected, expected_pages = attend("reference", batch, **choices)
        out, pages = attend("tpu", batch, **choices)
        assert_close(out, expected, sizes.get("q_dtype", "float32"))
        assert_same_numbers(pages, expected_pages)


@pytest.mark.interpreted
@settings(max_examples=8, suppress_health_check=list(HealthCheck))
@given(
    rows=ragged_rows(),
    seed=st.integers(0, 99),
    program=st.sampled_from(
        (({"sliding_window": 19}, "float32"), (OPTIONS["bidirectional"], "float8_e5m2"))
    ),
)
def test_tpu_equals_the_reference_on_any_ragged_batch_without_a_race(
    rows, seed, program, batch_of, attend, assert_close, has_raced
):
    options, pages_dtype = program
    batch = batch_of(rows, seed=seed, page_size=32, pages_per_row=3, pages_dtype=pages_dtype)
    expected, expected_pages = attend("reference", batch, **options)
    out, pages = attend("tpu", batch, interpret=WITH_RACES, **options)
    assert not has_raced()
    assert_close(out, expected)
    assert_same_numbers(pages, expected_pages)


def plain_attention(q_THN, keys_LH, values_LH, positions, *, window=None, cap=None, sink=None):
    """One head in float64, straight from the formula."""
    logits = 0.25 * q_THN @ keys_LH.T
    logits = logits if cap is None else cap * np.tanh(logits / cap)
    seen = np.arange(len(keys_LH))[None, :] <= positions[:, None]
    if window is not None:
        seen &= np.arange(len(keys_LH))[None, :] > positions[:, None] - window
    weights = np.where(seen, np.exp(logits), 0.0)
    total = weights.sum(1) + (0.0 if sink is None else np.exp(sink))
    return weights @ values_LH / total[:, None]


@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("sinks", [None, SINKS])
def test_the_reference_equals_plain_attention_with_every_head_on_its_own(
    window, cap, sinks, batch_of, attend, assert_close
):
    batch = batch_of([(1, 0), (9, 30)])
    options = {"sliding_window": window, "logit_softcap": cap, "sinks_N": sinks}
    out, pages = attend("reference", batch, **{k: x for k, x in options.items() if x is not None})
    keys, values = (
        np.asarray(x, np.float64).reshape(-1, 2, 16)[:30]
        for x in gather_kv_pages(pages, batch.page_table_SM[1])
    )
    q = np.asarray(batch.q_TNH, np.float64)[1:10]
    for head in range(6):
        expected = plain_attention(
            q[:, head],
            keys[:, head // 3],
            values[:, head // 3],
            np.arange(21, 30),
            window=window,
            cap=cap,
            sink=None if sinks is None else sinks[head],
        )
        assert_close(out[1:10, head], expected.astype(np.float32))
    assert not out[0].any()
    assert not out[10:].any()


def test_unmasked_new_tokens_see_their_whole_row(batch_of, attend, assert_close):
    batch = batch_of([(4, 4)])
    out, _ = attend("reference", batch.where(q_TNH=jnp.zeros_like(batch.q_TNH)), causal=False)
    average = np.asarray(batch.v_TKH[:4]).mean(axis=0).repeat(3, axis=0)
    assert_close(out[:4], np.broadcast_to(average, (4, 6, 16)))


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(spec, id=name, marks=() if name in SMALL_SPECS else pytest.mark.slow)
        for name, spec in SPECS.items()
    ],
)
def test_xla_equals_the_reference_on_real_shapes(spec, batch_of, assert_close):
    batch = batch_of(
        spec.rows,
        num_tokens=spec.tokens,
        num_slots=spec.slots,
        num_kv_heads=spec.num_kv_heads,
        group_size=spec.num_heads // spec.num_kv_heads,
        head_dim=spec.head_dim,
        page_size=spec.page_size,
        pages_per_row=spec.pages_per_row,
        num_pages=spec.num_pages,
        pages_dtype="bfloat16",
        q_dtype="bfloat16",
    )
    options = {"sliding_window": spec.sliding_window, "logit_softcap": spec.logit_softcap}
    if spec.has_sinks:
        options["sinks_N"] = jnp.linspace(-1, 1, spec.num_heads, dtype=jnp.float32)
    out, expected = (
        ragged_paged_attention(
            *batch.arguments, scale=spec.head_dim**-0.5, implementation=name, **options
        )[0]
        for name in ("xla", "reference")
    )
    assert_close(np.asarray(out, np.float32), np.asarray(expected, np.float32), "bfloat16")


@pytest.mark.interpreted
def test_positions_beyond_sixteen_bits_are_not_folded(batch_of, attend, assert_close):
    batch = batch_of(
        [(1, 40_000), (5, 70_003)],
        num_tokens=6,
        num_slots=2,
        num_kv_heads=1,
        group_size=1,
        head_dim=8,
        page_size=8,
        pages_per_row=9_000,
        num_pages=1 + 5_000 + 8_751,
    )
    for options in ({}, {"sliding_window": 70}):
        expected, _ = attend("reference", batch, **options)
        out, _ = attend("xla", batch, **options)
        assert_close(out, expected)
    out, _ = attend("tpu", batch, sliding_window=70)
    assert_close(out, expected)
