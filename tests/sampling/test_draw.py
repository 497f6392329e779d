"""Draws against the cumulative distribution, and against the probabilities they stand for."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxinfer.sampling.draw import invert_cumulative
from jaxinfer.sampling.keys import sample_key, uniforms

VOCAB = 1100
invert = jax.jit(invert_cumulative)


@given(
    seed=st.integers(0, 2**32 - 1),
    density=st.sampled_from([0.002, 0.05, 1]),
    parts=st.lists(st.integers(0, 2**10 - 1), min_size=5, max_size=5),
)
def test_a_draw_is_the_first_id_whose_running_sum_is_above_the_target(seed, density, parts):
    # Whole weights and fractions of 1,024: every sum and product is exact.
    rng = np.random.default_rng(seed)
    weights = rng.integers(1, 8, (5, VOCAB)) * (rng.random((5, VOCAB)) < density)
    weights[:, rng.integers(VOCAB)] += 1
    uniform = np.asarray(parts, np.float32) / 1024
    running = weights.cumsum(-1)
    expected = np.argmax(running * 1024 > np.asarray(parts)[:, None] * running[:, -1:], axis=-1)
    assert invert(weights.astype(np.float32), uniform).tolist() == expected.tolist()


@given(seed=st.integers(0, 2**32 - 1), uniform=st.sampled_from([0, 0.5, 1 - 2**-24]))
def test_a_token_of_no_weight_is_never_drawn(seed, uniform):
    rng = np.random.default_rng(seed)
    weights = np.exp(rng.normal(0, 8, (5, VOCAB))) * (rng.random((5, VOCAB)) < 0.3)
    weights[:, 700] += 1e-3
    weights = weights.astype(np.float32)
    drawn = np.asarray(invert(weights, np.full(5, uniform, np.float32)))
    assert np.all(weights[np.arange(5), drawn] > 0)


def test_a_row_of_no_weight_gives_a_token_of_the_vocabulary():
    drawn = invert(np.zeros((1, VOCAB), np.float32), np.full(1, 0.5, np.float32))
    assert drawn.tolist() == [0]


@pytest.mark.parametrize("seed", [1, 2])
def test_draws_follow_the_probabilities(seed):
    # Chi-square with 11 degrees of freedom: 31.26 is exceeded once in a thousand seeds.
    num_draws = 20_000
    probabilities = np.random.default_rng(seed).dirichlet(np.full(12, 2.0))
    keys = np.tile(sample_key(seed, 0), (num_draws, 1))
    uniform = uniforms(keys, np.arange(num_draws, dtype=np.int32))
    weights = np.tile(probabilities.astype(np.float32), (num_draws, 1))
    counts = np.bincount(invert(weights, uniform), minlength=12)
    expected = num_draws * probabilities
    assert np.sum((counts - expected) ** 2 / expected) < 31.26
