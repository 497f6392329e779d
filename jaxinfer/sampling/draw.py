"""One token a row: the most probable, or one drawn from the filtered distribution.

A draw inverts the cumulative distribution at one uniform number, in the order of token ids: first
the block, then the token in it. Rounding can never draw a token of weight 0.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxinfer.sampling.blocks import argmax, read_blocks, reduce_blocks
from jaxinfer.sampling.filters import floors, is_filtered
from jaxinfer.sampling.keys import uniforms
from jaxinfer.sampling.state import SamplingState


def greedy(logits_SV: jax.Array) -> jax.Array:
    """int32 ``[S]``: the largest logit of each row; equal ones go to the lowest id."""
    return argmax(logits_SV, reduce_blocks(logits_SV, jnp.max))


def choose(
    logits_SV: jax.Array, state: SamplingState, wanted_S: jax.Array, *, has_loops: bool = True
) -> jax.Array:
    """int32 ``[S]``: each wanted row's token from its processed logits: the greedy one at
    temperature 0, else one drawn. A row in which nothing is allowed gives id 0. ``has_loops``: see
    ``sample``.
    """
    block_max_SB = reduce_blocks(logits_SV, jnp.max)
    sampled_S = wanted_S & (state.temperature_S > 0)
    greedy_S = argmax(logits_SV, block_max_SB)
    max_S = jnp.max(block_max_SB, axis=-1)

    def draw() -> jax.Array:
        drawn_S = _draw(logits_SV, max_S, state, sampled_S, has_loops=has_loops)
        return jnp.where(sampled_S, drawn_S, greedy_S)

    return lax.cond(jnp.any(sampled_S), draw, lambda: greedy_S)


def _draw(
    logits_SV: jax.Array,
    max_S: jax.Array,
    state: SamplingState,
    sampled_S: jax.Array,
    *,
    has_loops: bool,
) -> jax.Array:
    temperature_S = jnp.where(sampled_S, state.temperature_S, jnp.float32(1))
    # Where nothing is allowed, -inf minus itself would be NaN.
    max_S = jnp.where(jnp.isfinite(max_S), max_S, jnp.float32(0))
    weights_SV = jnp.exp((logits_SV - max_S[:, None]) / temperature_S[:, None])
    # Computed once: each of the passes below would otherwise take the exponentials anew.
    weights_SV = lax.optimization_barrier(weights_SV)

    def filtered() -> jax.Array:
        floor_S = floors(weights_SV, state, sampled_S, has_loops=has_loops)
        return jnp.where(weights_SV >= floor_S[:, None], weights_SV, jnp.float32(0))

    kept_SV = lax.cond(jnp.any(sampled_S & is_filtered(state)), filtered, lambda: weights_SV)
    return invert_cumulative(kept_SV, uniforms(state.key_S2, state.num_generated_S))


def invert_cumulative(weights_SV: jax.Array, uniform_S: jax.Array) -> jax.Array:
    """int32 ``[S]``: the first id at which the running sum of weights passes ``uniform * sum``."""
    sums_SB = reduce_blocks(weights_SV, jnp.sum)
    running_SB = jnp.cumsum(sums_SB, axis=-1)
    target_S = uniform_S * running_SB[:, -1]
    block_S1 = _first_above(running_SB, sums_SB, target_S)[:, None]
    before_SB = running_SB - sums_SB
    target_S = target_S - jnp.take_along_axis(before_SB, block_S1, axis=1)[:, 0]

    block_S1b, ids_S1b = read_blocks(weights_SV, block_S1, fill=0)
    weights_Sb, ids_Sb = block_S1b[:, 0], ids_S1b[:, 0]
    place_S = _first_above(jnp.cumsum(weights_Sb, axis=-1), weights_Sb, target_S)
    return jnp.take_along_axis(ids_Sb, place_S[:, None], axis=1)[:, 0]


def _first_above(running_SX: jax.Array, weights_SX: jax.Array, target_S: jax.Array) -> jax.Array:
    """The first place of positive weight whose running sum is above the target; the last place of
    positive weight where rounding leaves none; 0 where no weight is positive.
    """
    place_X = jnp.arange(weights_SX.shape[1], dtype=jnp.int32)[None]
    is_possible_SX = weights_SX > 0
    last_S = jnp.max(jnp.where(is_possible_SX, place_X, 0), axis=-1)
    is_above_SX = is_possible_SX & (running_SX > target_S[:, None])
    return jnp.min(jnp.where(is_above_SX, place_X, last_S[:, None]), axis=-1)
