"""A softmax average built block by block, against the formula in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.paging import softmax


def item_of(logits, values):
    """One block: a row of logits, and the values that they weigh."""
    top = softmax.top_of(jnp.asarray(logits.max(), jnp.float32)[None])
    weights = softmax.weights_of(jnp.asarray(logits, jnp.float32)[None], top)[0]
    sums = jnp.concatenate([weights @ jnp.asarray(values, jnp.float32), weights.sum()[None]])
    return softmax.Softmax(top, sums[None])


def average(logits, values, order, sinks=None):
    """The blocks of one row, added in this order, each on its own."""
    state = softmax.begin((1,), values.shape[-1], sinks)
    slot, is_first = jnp.zeros(1, jnp.int32), jnp.ones(1, bool)
    for block in order:
        state = softmax.add_items(state, slot, is_first, item_of(logits[block], values[block]))
    return np.asarray(softmax.finish(state)[0])


@pytest.mark.parametrize("sink", [None, 2.0])
def test_blocks_in_any_order_make_the_average_of_the_formula(sink, assert_close):
    rng = np.random.default_rng(0)
    logits, values = rng.normal(size=(3, 5)) * 20, rng.normal(size=(3, 5, 4))
    weights = np.exp(logits)
    total = weights.sum() + (0.0 if sink is None else np.exp(sink))
    expected = np.einsum("bp,bph->h", weights, values) / total
    sinks = None if sink is None else jnp.asarray([sink], jnp.float32)
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        assert_close(average(logits, values, order, sinks), expected.astype(np.float32))


def test_what_has_seen_nothing_is_zero():
    nothing = softmax.begin((2, 3), 4, None)
    np.testing.assert_array_equal(np.asarray(softmax.finish(nothing)), np.zeros((2, 3, 4)))


def test_powers_of_two_are_exact_and_end_at_zero():
    exponents = jnp.asarray([0.0, -1.0, -126.0, -127.0, -1e30], jnp.float32)
    expected = [1.0, 0.5, 2.0**-126, 0.0, 0.0]
    np.testing.assert_array_equal(np.asarray(softmax.power_of_two(exponents)), expected)


def test_a_slot_beyond_the_rows_is_dropped():
    state = softmax.begin((1,), 2, None)
    item = item_of(np.zeros(3), np.ones((3, 2)))
    for slot in (1, 2**31 - 1, -1):
        added = softmax.add_items(state, jnp.asarray([slot], jnp.int32), jnp.ones(1, bool), item)
        np.testing.assert_array_equal(np.asarray(added.sums), np.asarray(state.sums))
