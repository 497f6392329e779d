"""Masks, biases and penalties against plain NumPy, on rows that each use something else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from jaxinfer.bits import pack_ids
from jaxinfer.sampling import admit, init_state, slot_sampling
from jaxinfer.sampling.processors import process
from jaxinfer.sampling_params import SamplingParams

ROWS, VOCAB, EOS = 4, 203, 5
TOKENS = st.lists(st.integers(0, VOCAB - 1), max_size=20)
PENALTY = st.floats(-2, 2, width=32)

process_rows = jax.jit(process, static_argnames="has_loops")
admit_row = jax.jit(admit)


def allowed_ids(params: SamplingParams) -> set[int]:
    return set(range(VOCAB) if params.allowed_token_ids is None else params.allowed_token_ids)


def stop_ids(params: SamplingParams) -> set[int]:
    return set(params.stop_token_ids) | (set() if params.ignore_eos else {EOS})


def plain_process(logits, params: SamplingParams, prompt, generated, step_ids) -> np.ndarray:
    """One row, step by step, in vLLM's order."""
    x = logits.astype(np.float32).copy()
    allowed = allowed_ids(params)
    if len(generated) < params.min_tokens:
        allowed -= stop_ids(params)
    allowed = allowed & set(step_ids) or allowed  # the step's mask yields where nothing is left
    x[list(set(range(VOCAB)) - allowed)] = -np.inf
    for token, bias in (params.logit_bias or {}).items():
        x[token] += np.float32(bias)
    for token in set(prompt) | set(generated):
        rate = np.float32(params.repetition_penalty)
        x[token] = x[token] / rate if x[token] > 0 else x[token] * rate
    for token in set(generated):
        x[token] -= np.float32(params.frequency_penalty) * np.float32(generated.count(token))
        x[token] -= np.float32(params.presence_penalty)
    return x


@st.composite
def some_params(draw: st.DrawFn) -> SamplingParams:
    params = SamplingParams(
        presence_penalty=draw(st.just(0.0) | PENALTY),
        frequency_penalty=draw(st.just(0.0) | PENALTY),
        repetition_penalty=draw(st.just(1.0) | st.floats(0.25, 4, width=32)),
        max_tokens=100,
        min_tokens=draw(st.sampled_from([0, 3, 50])),
        stop_token_ids=draw(TOKENS),
        ignore_eos=draw(st.booleans()),
        logit_bias=draw(
            st.none()
            | st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100, width=32))
            | st.just({token: float(token % 7) for token in range(VOCAB)})
        ),
        allowed_token_ids=draw(st.none() | TOKENS.filter(bool)),
    )
    assume(params.min_tokens == 0 or allowed_ids(params) - stop_ids(params))
    return params


@given(data=st.data(), seed=st.integers(0, 2**32 - 1), has_mask=st.booleans())
def test_processed_logits_are_those_of_the_plain_twin(data, seed, has_mask):
    logits = np.random.default_rng(seed).normal(0, 5, (ROWS, VOCAB)).astype(np.float32)
    state, expected, masks = init_state(ROWS, VOCAB), [], []
    for slot in range(ROWS):
        params, prompt, generated = data.draw(st.tuples(some_params(), TOKENS, TOKENS))
        step_ids = data.draw(TOKENS) if has_mask else range(VOCAB)
        row = slot_sampling(
            params,
            sample_index=0,
            vocab_size=VOCAB,
            eos_token_ids=[EOS],
            prompt=prompt,
            generated=generated,
            max_tokens=100,
        )
        state = admit_row(state, np.int32(slot), row)
        expected.append(plain_process(logits[slot], params, prompt, generated, step_ids))
        masks.append(pack_ids(step_ids, VOCAB))
    mask = np.stack(masks) if has_mask else None
    for has_loops in (True, False):
        actual = process_rows(logits, state, np.ones(ROWS, bool), mask, has_loops=has_loops)
        np.testing.assert_allclose(actual, np.stack(expected), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("has_loops", [True, False])
def test_more_biases_than_a_chunk_are_added_once_each(has_loops):
    vocab = 500
    biases = {token: float(token) / 8 for token in range(vocab) if token % 3 == 0}
    params = SamplingParams(logit_bias={token: min(bias, 100) for token, bias in biases.items()})
    row = slot_sampling(params, sample_index=0, vocab_size=vocab, eos_token_ids=[], max_tokens=9)
    state = admit(init_state(2, vocab), np.int32(1), row)
    actual = process(jnp.zeros((2, vocab)), state, jnp.ones(2, bool), None, has_loops=has_loops)
    expected = np.zeros((2, vocab))
    expected[1, ::3] = np.arange(0, vocab, 3) / 8
    assert np.array_equal(actual, expected)


def test_extreme_penalties_make_no_infinity_of_an_allowed_token():
    logits = np.asarray([[3e38, -3e38, 0.0, 1.0]], np.float32)
    for repetition_penalty in (5e-324, 1e300):
        params = SamplingParams(repetition_penalty=repetition_penalty)
        row = slot_sampling(
            params, sample_index=0, vocab_size=4, eos_token_ids=[], prompt=[0, 1, 2], max_tokens=9
        )
        state = admit(init_state(1, 4), np.int32(0), row)
        assert np.all(np.isfinite(process(jnp.asarray(logits), state, jnp.ones(1, bool), None)))
