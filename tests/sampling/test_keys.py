"""The random numbers against published vectors and a plain threefry."""

import hashlib

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxinfer.sampling.keys import sample_key, uniforms

MASK = 2**32 - 1
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
WORD = st.integers(0, MASK)


def threefry2x32(key: tuple[int, int], counter: tuple[int, int]) -> tuple[int, int]:
    """Threefry-2x32 with 20 rounds, after Salmon et al. 2011."""
    schedule = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    x = [(counter[0] + schedule[0]) & MASK, (counter[1] + schedule[1]) & MASK]
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            x[0] = (x[0] + x[1]) & MASK
            x[1] = ((x[1] << rotation | x[1] >> (32 - rotation)) & MASK) ^ x[0]
        x[0] = (x[0] + schedule[(group + 1) % 3]) & MASK
        x[1] = (x[1] + schedule[(group + 2) % 3] + group + 1) & MASK
    return x[0], x[1]


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((MASK, MASK), (MASK, MASK), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_the_plain_threefry_gives_the_published_answers(key, counter, expected):
    assert threefry2x32(key, counter) == expected


@given(key=st.tuples(WORD, WORD), position=st.integers(0, 2**31 - 1))
def test_a_uniform_is_the_head_of_threefry_of_key_and_position(key, position):
    [actual] = uniforms(jnp.asarray([key], jnp.uint32), jnp.asarray([position], jnp.int32))
    assert float(actual) == (threefry2x32(key, (0, position))[0] >> 8) * 2**-24


def test_a_key_is_the_head_of_a_sha256_of_seed_and_index():
    message = b"jaxinfer.sample" + (42).to_bytes(8, "little") + (3).to_bytes(8, "little")
    digest = hashlib.sha256(message).digest()
    expected = [int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")]
    assert sample_key(42, 3).tolist() == expected


def test_seeds_and_samples_have_keys_of_their_own():
    keys = {tuple(sample_key(seed, index)) for seed in (-1, 0, 1, 2**63) for index in range(4)}
    assert len(keys) == 16


def test_a_negative_seed_is_its_unsigned_twin():
    assert np.array_equal(sample_key(-1, 0), sample_key(2**64 - 1, 0))
