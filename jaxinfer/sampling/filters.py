"""The filters min-p, top-k and top-p as one number a row: the least weight that may be drawn.

A token's weight is its probability in units of the most probable token's: ``exp((x - max) / T)``
in float32, at most 1. In vLLM's order: min-p keeps weights of at least ``min_p`` (arXiv
2407.01082); top-k those of at least the k-th largest (arXiv 1805.04833); top-p the smallest set of
largest weights that holds the fraction ``top_p`` of the mass that the first two left (arXiv
1904.09751). Tokens of equal weight are kept or dropped together: a tie at the border is kept, as in
vLLM's top-k.

Nothing is sorted but each row's ``NUM_BEST`` largest weights, which settle almost every row of a
trained model. The others are settled, a few rows at a time, by bisection over the bit patterns of
float32, which for positive numbers are ordered like the numbers: exact after 30 passes.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxinfer.sampling.blocks import top
from jaxinfer.sampling.rows import map_rows
from jaxinfer.sampling.state import SamplingState

NUM_BEST = 64
#: Rows bisected together: few, because the rows that need it are few and far between.
ROWS_BISECTED_AT_ONCE = 4
#: From the bits of 0 to those of 1 there are less than 2^30 steps.
BISECTIONS = 30


def is_filtered(state: SamplingState) -> jax.Array:
    """Bool ``[S]``: rows with any filter on."""
    return (state.min_p_S > 0) | _has_top_filter(state)


def floors(
    weights_SV: jax.Array, state: SamplingState, sampled_S: jax.Array, *, has_loops: bool = True
) -> jax.Array:
    """float32 ``[S]``: weights below are dropped. Meaningful for ``sampled_S``; the best token's
    weight, 1, is never below. ``has_loops``: see ``sample``.
    """
    needs_top_S = sampled_S & _has_top_filter(state)
    return lax.cond(
        jnp.any(needs_top_S),
        lambda: _top_floors(weights_SV, state, needs_top_S, has_loops=has_loops),
        lambda: state.min_p_S,
    )


def _has_top_filter(state: SamplingState) -> jax.Array:
    return (state.top_k_S > 0) | (state.top_p_S < 1)


def _top_floors(
    weights_SV: jax.Array, state: SamplingState, needs_S: jax.Array, *, has_loops: bool
) -> jax.Array:
    num_best = min(NUM_BEST, weights_SV.shape[1])
    best_SJ, _ = top(weights_SV, num_best)

    place_S1 = jnp.clip(state.top_k_S - 1, 0, num_best - 1)[:, None]
    kth_S = jnp.take_along_axis(best_SJ, place_S1, axis=1)[:, 0]
    has_top_k_S = state.top_k_S > 0
    floor_S = jnp.where(has_top_k_S, jnp.maximum(state.min_p_S, kth_S), state.min_p_S)

    has_top_p_S = state.top_p_S < 1
    goal_S = lax.cond(
        jnp.any(needs_S & has_top_p_S),
        lambda: state.top_p_S * _mass(weights_SV, floor_S),
        lambda: jnp.zeros_like(floor_S),
    )
    # A weight is in the nucleus where the mass of those before it falls short of the goal.
    before_SJ = jnp.cumsum(best_SJ, axis=-1) - best_SJ
    is_nucleus_SJ = (before_SJ < goal_S[:, None]) & (best_SJ >= floor_S[:, None])
    nucleus_floor_S = jnp.min(jnp.where(is_nucleus_SJ, best_SJ, jnp.float32(1)), axis=-1)
    floor_S = jnp.where(has_top_p_S, nucleus_floor_S, floor_S)

    if weights_SV.shape[1] == num_best:
        return floor_S
    # With the least of the best in the nucleus, weights that were not looked at may be in it too.
    ends_in_sight_S = ~has_top_p_S | (nucleus_floor_S > best_SJ[:, -1])
    is_settled_S = ends_in_sight_S & (state.top_k_S <= num_best)
    return map_rows(
        functools.partial(_bisected_floors, has_loops=has_loops),
        needs_S & ~is_settled_S,
        (weights_SV, state.min_p_S, state.top_k_S, state.top_p_S),
        floor_S,
        rows_at_once=ROWS_BISECTED_AT_ONCE if has_loops else None,
    )


def _bisected_floors(
    _: jax.Array, operands: tuple[jax.Array, ...], *, has_loops: bool
) -> jax.Array:
    weights_RV, min_p_R, top_k_R, top_p_R = operands
    num_rows = top_k_R.size

    def largest_floor(is_enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return _largest_floor(is_enough, num_rows, has_loops=has_loops)

    def top_k_floor() -> jax.Array:
        wanted_R = top_k_R.astype(jnp.float32)
        kth_R = largest_floor(lambda floor_R: _count(weights_RV, floor_R) >= wanted_R)
        return jnp.where(top_k_R > 0, jnp.maximum(min_p_R, kth_R), min_p_R)

    floor_R = lax.cond(jnp.any(top_k_R > 0), top_k_floor, lambda: min_p_R)

    def top_p_floor() -> jax.Array:
        goal_R = top_p_R * _mass(weights_RV, floor_R)
        nucleus_R = largest_floor(lambda floor_R: _mass(weights_RV, floor_R) >= goal_R)
        return jnp.where(top_p_R < 1, jnp.maximum(floor_R, nucleus_R), floor_R)

    return lax.cond(jnp.any(top_p_R < 1), top_p_floor, lambda: floor_R)


def _count(weights_SV: jax.Array, floor_S: jax.Array) -> jax.Array:
    # In float32, exact up to 2^24 and twice as fast as in int32 on the CPU.
    kept_SV = jnp.where(weights_SV >= floor_S[:, None], jnp.float32(1), jnp.float32(0))
    return jnp.sum(kept_SV, axis=-1)


def _mass(weights_SV: jax.Array, floor_S: jax.Array) -> jax.Array:
    kept_SV = jnp.where(weights_SV >= floor_S[:, None], weights_SV, jnp.float32(0))
    return jnp.sum(kept_SV, axis=-1)


def _largest_floor(
    is_enough: Callable[[jax.Array], jax.Array], num_rows: int, *, has_loops: bool
) -> jax.Array:
    """The largest float32 from 0 to 1 for which ``is_enough`` holds, as it does for 0."""

    def unfinished(bounds: tuple[jax.Array, jax.Array]) -> jax.Array:
        enough_R, too_high_R = bounds
        return jnp.any(too_high_R - enough_R > 1)

    def halve(bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        enough_R, too_high_R = bounds
        middle_R = enough_R + (too_high_R - enough_R) // 2
        holds_R = is_enough(lax.bitcast_convert_type(middle_R, jnp.float32))
        return jnp.where(holds_R, middle_R, enough_R), jnp.where(holds_R, too_high_R, middle_R)

    above_one = lax.bitcast_convert_type(jnp.float32(1), jnp.int32) + 1
    bounds = (jnp.zeros(num_rows, jnp.int32), jnp.broadcast_to(above_one, (num_rows,)))
    if has_loops:
        enough_R, _ = lax.while_loop(unfinished, halve, bounds)
    else:
        for _ in range(BISECTIONS):
            bounds = halve(bounds)
        enough_R, _ = bounds
    return lax.bitcast_convert_type(enough_R, jnp.float32)
