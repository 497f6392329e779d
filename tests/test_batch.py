"""Rows and tokens of a step: which of them are alive."""

import jax.numpy as jnp
import pytest

from jaxinfer.batch import Ragged, decode_ragged


def test_in_a_decode_step_the_tokens_of_idle_slots_are_not_alive():
    ragged = decode_ragged(jnp.asarray([3, 0, 1, 0], jnp.int32))
    assert ragged.live_tokens(4).tolist() == [True, False, True, False]


@pytest.mark.parametrize("rest", [6, 0, -1, 2**31 - 1])
def test_in_a_prefill_the_tokens_of_idle_rows_and_behind_all_rows_are_not_alive(rest):
    """Two tokens, none, one of an idle row, three; then padding, whose borders may be anything."""
    ragged = Ragged(
        kv_lens_S=jnp.asarray([2, 5, 0, 9, 7, 7], jnp.int32),
        cu_q_lens_S1=jnp.asarray([0, 2, 2, 3, 6, rest, rest], jnp.int32),
        distribution_3=jnp.asarray([0, 1, 4], jnp.int32),
    )
    expected = [True, True, False, True, True, True, False, False]
    assert ragged.live_tokens(8).tolist() == expected
