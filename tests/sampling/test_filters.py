"""min-p, top-k and top-p against a sorted oracle, ties included.

Weights and fractions are multiples of powers of two, so that every sum is exact and the sets must
be equal, not close.
"""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxinfer.sampling.filters import NUM_BEST, floors
from jaxinfer.sampling.state import init_state

ROWS = 6
VOCAB = 300
assert NUM_BEST < VOCAB

floors_of = jax.jit(floors)
floors_without_loops = jax.jit(functools.partial(floors, has_loops=False))


def kept_ids(weights: np.ndarray, min_p: float, top_k: int, top_p: float) -> set[int]:
    """The definition: sort, cut at min-p, at the k-th, at the mass; ties stay together."""
    kept = [(weight, token) for token, weight in enumerate(weights.tolist()) if weight >= min_p]
    if top_k:
        kth = sorted(weights.tolist(), reverse=True)[top_k - 1]
        kept = [pair for pair in kept if pair[0] >= kth]
    if top_p < 1:
        goal = top_p * sum(weight for weight, _ in kept)
        above = {limit: sum(w for w, _ in kept if w > limit) for limit, _ in kept}
        kept = [pair for pair in kept if above[pair[0]] < goal]
    return {token for _, token in kept}


def filtered_ids(weights: np.ndarray, min_p, top_k, top_p, sampled=None) -> list[set[int]]:
    state = replace(
        init_state(len(weights), weights.shape[1]),
        min_p_S=jnp.asarray(min_p, jnp.float32),
        top_k_S=jnp.asarray(top_k, jnp.int32),
        top_p_S=jnp.asarray(top_p, jnp.float32),
    )
    sampled = np.ones(len(weights), bool) if sampled is None else sampled
    arguments = (weights.astype(np.float32), state, sampled)
    floor = np.asarray(floors_of(*arguments))
    np.testing.assert_array_equal(floors_without_loops(*arguments)[sampled], floor[sampled])
    return [
        set(np.flatnonzero(row >= least).tolist())
        for row, least in zip(weights, floor, strict=True)
    ]


def weights_of(seed: int, least_exponent: int, num_large: int, vocab: int = VOCAB) -> np.ndarray:
    """A few large weights and a tail, with ties everywhere; the best is 1."""
    rng = np.random.default_rng(seed)
    weights = 2.0 ** -rng.integers(least_exponent, 15, (ROWS, vocab))
    large = rng.integers(0, vocab, (ROWS, num_large))
    np.put_along_axis(weights, large, 2.0 ** -rng.integers(0, 4, large.shape), axis=1)
    weights[np.arange(ROWS), rng.integers(0, vocab, ROWS)] = 1
    return weights


@given(
    seed=st.integers(0, 2**32 - 1),
    least_exponent=st.sampled_from([0, 4, 9]),
    num_large=st.integers(0, 40),
    min_p=st.lists(st.sampled_from([0, 2**-12, 2**-3, 1]), min_size=ROWS, max_size=ROWS),
    top_k=st.lists(
        st.sampled_from([0, 1, 2, 5, NUM_BEST - 1, NUM_BEST, NUM_BEST + 1, 200, VOCAB - 1]),
        min_size=ROWS,
        max_size=ROWS,
    ),
    top_p=st.lists(
        st.sampled_from([1, *(part / 16 for part in range(1, 16))]), min_size=ROWS, max_size=ROWS
    ),
)
def test_the_kept_set_is_that_of_the_sorted_oracle(
    seed, least_exponent, num_large, min_p, top_k, top_p
):
    weights = weights_of(seed, least_exponent, num_large)
    expected = [kept_ids(*row) for row in zip(weights, min_p, top_k, top_p, strict=True)]
    assert filtered_ids(weights, min_p, top_k, top_p) == expected


@pytest.mark.parametrize("vocab", [1, 3, NUM_BEST - 1, NUM_BEST, NUM_BEST + 1])
def test_small_vocabularies_are_filtered_alike(vocab):
    weights = weights_of(vocab, 0, 2, vocab)
    min_p, top_k = [0, 0, 0.25, 0, 0, 0], [0, min(2, vocab - 1), 0, 0, 0, min(3, vocab - 1)]
    top_p = [0.5, 1, 0.75, 0.9375, 1, 0.25]
    expected = [kept_ids(*row) for row in zip(weights, min_p, top_k, top_p, strict=True)]
    assert filtered_ids(weights, min_p, top_k, top_p) == expected


def test_equal_weights_are_all_kept_whatever_the_fraction():
    weights = np.ones((2, VOCAB))
    assert filtered_ids(weights, [0, 0], [0, 7], [0.0625, 1]) == [set(range(VOCAB))] * 2


def test_a_fraction_too_small_for_float32_keeps_the_best():
    weights = np.tile(2.0 ** -np.arange(VOCAB).clip(max=20), (1, 1))
    assert filtered_ids(weights, [0], [0], [1e-45]) == [{0}]


def test_rows_that_are_not_sampled_may_hold_nan():
    weights = weights_of(1, 0, 3)
    weights[::2] = np.nan
    sampled = np.arange(ROWS) % 2 == 1
    min_p, top_k, top_p = [0] * ROWS, [0, 200] * 3, [0.5] * ROWS
    actual = filtered_ids(weights, min_p, top_k, top_p, sampled)
    for row in range(1, ROWS, 2):
        assert actual[row] == kept_ids(weights[row], 0, 200, 0.5)
