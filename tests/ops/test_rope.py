"""Rotary positions: what rotation must keep, and where the scalings must meet."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxinfer.config import (
    DynamicScaling,
    LinearScaling,
    Llama3Scaling,
    LongropeScaling,
    RopeSpec,
    YarnScaling,
)
from jaxinfer.ops.rope import frequencies, rope_table, rotate

PLAIN = RopeSpec(theta=10_000.0, rotary_dim=16)


def scaled(scaling: object) -> RopeSpec:
    return RopeSpec(theta=10_000.0, rotary_dim=16, scaling=scaling)


@pytest.mark.parametrize("interleaved", [False, True])
def test_scores_depend_on_the_distance_alone(interleaved: bool) -> None:
    spec = RopeSpec(theta=10_000.0, rotary_dim=16, interleaved=interleaved)
    q, k = np.random.default_rng(0).normal(size=(2, 1, 1, 16)).astype(np.float32)

    def score(q_position: int, k_position: int) -> float:
        turned = [
            rotate(spec, rope_table(spec, 512, jnp.asarray([at], jnp.int32)), jnp.asarray(x))
            for x, at in ((q, q_position), (k, k_position))
        ]
        return float(jnp.sum(turned[0] * turned[1]))

    np.testing.assert_allclose(score(9, 4), score(105, 100), rtol=1e-4)


def test_dims_beyond_the_rotary_ones_are_left_alone() -> None:
    spec = RopeSpec(theta=10_000.0, rotary_dim=4)
    x = jnp.arange(16, dtype=jnp.float32).reshape(1, 2, 8)
    turned = rotate(spec, rope_table(spec, 8, jnp.asarray([3], jnp.int32)), x)
    np.testing.assert_array_equal(turned[..., 4:], x[..., 4:])
    assert not np.array_equal(turned[..., :4], x[..., :4])


def test_both_pairings_are_permutations_of_each_other() -> None:
    halves = RopeSpec(theta=10_000.0, rotary_dim=8)
    neighbours = RopeSpec(theta=10_000.0, rotary_dim=8, interleaved=True)
    x = np.random.default_rng(1).normal(size=(3, 2, 8)).astype(np.float32)
    order = np.arange(8).reshape(2, 4).T.ravel()
    positions = jnp.asarray([0, 5, 77], jnp.int32)
    by_halves = rotate(halves, rope_table(halves, 128, positions), jnp.asarray(x))
    by_neighbours = rotate(
        neighbours, rope_table(neighbours, 128, positions), jnp.asarray(x[..., order])
    )
    np.testing.assert_allclose(by_neighbours, by_halves[..., order], atol=1e-6)


@pytest.mark.parametrize(
    ("scaling", "max_len"),
    [
        (LinearScaling(factor=1.0), 512),
        (DynamicScaling(factor=4.0, original_len=128), 128),
        (
            Llama3Scaling(factor=1.0, low_freq_factor=1.0, high_freq_factor=4.0, original_len=128),
            512,
        ),
        (YarnScaling(factor=1.0, original_len=128), 512),
        (
            LongropeScaling(
                short_factor=(1.0,) * 8, long_factor=(2.0,) * 8, original_len=128, factor=1.0
            ),
            128,
        ),
    ],
)
def test_a_scaling_that_does_not_stretch_is_no_scaling(scaling: object, max_len: int) -> None:
    radians, factor = frequencies(scaled(scaling), max_len)
    np.testing.assert_allclose(radians, frequencies(PLAIN, max_len)[0], rtol=1e-12)
    assert factor == 1.0


def test_the_length_served_chooses_the_longrope_factors() -> None:
    scaling = LongropeScaling(
        short_factor=(1.0,) * 8, long_factor=(4.0,) * 8, original_len=128, factor=4.0
    )
    plain = frequencies(PLAIN, 128)[0]
    np.testing.assert_allclose(frequencies(scaled(scaling), 128)[0], plain)
    np.testing.assert_allclose(frequencies(scaled(scaling), 129)[0], plain / 4)


def test_positions_beyond_sixteen_bits_are_told_apart() -> None:
    far = rope_table(PLAIN, 200_000, jnp.asarray([65_536, 65_537, 131_072], jnp.int32))
    near = rope_table(PLAIN, 200_000, jnp.asarray([0, 1, 0], jnp.int32))
    assert not np.allclose(far.cos_Th, near.cos_Th)
    angles = np.asarray([65_536, 65_537, 131_072])[:, None] * frequencies(PLAIN, 200_000)[0]
    np.testing.assert_allclose(far.cos_Th, np.cos(angles), atol=2e-2)
