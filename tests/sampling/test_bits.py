"""Packed sets of ids against Python sets."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxinfer.bits import all_ids, num_words, pack_ids
from jaxinfer.sampling.bits import contains, unpack

VOCAB = 77


@given(ids=st.sets(st.integers(0, VOCAB - 1)))
def test_unpacking_a_packed_set_gives_its_members(ids):
    members = np.asarray(unpack(jnp.asarray(pack_ids(ids, VOCAB))[None], VOCAB))[0]
    assert set(np.flatnonzero(members).tolist()) == ids


def test_ids_outside_the_vocabulary_are_left_out():
    words = pack_ids([-1, 5, VOCAB, 2**40], VOCAB)
    assert words.tolist() == pack_ids([5], VOCAB).tolist()


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 64, VOCAB])
def test_all_ids_leave_the_bits_beyond_the_vocabulary_clear(vocab_size):
    words = all_ids(vocab_size)
    assert words.shape == (num_words(vocab_size),)
    assert sum(int(word).bit_count() for word in words) == vocab_size


def test_contains_asks_each_row_for_its_own_id():
    words = jnp.asarray(np.stack([pack_ids([3, 31, 76], VOCAB)] * 4))
    asked = jnp.asarray([3, 4, 31, 76], jnp.int32)
    assert contains(words, asked).tolist() == [True, False, True, True]
