"""What a request changes about the logits before a token is chosen: biases, penalties, masks.

In vLLM's order: forbidden tokens, logit bias, repetition penalty (CTRL, arXiv 1909.05858), presence
and frequency penalties (OpenAI). A forbidden token is ``-inf`` whatever else is done to it, so the
masks are applied last, in the pass that applies the penalties.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxinfer.bits import all_ids
from jaxinfer.sampling.bits import unpack
from jaxinfer.sampling.slot import BIAS_CHUNK
from jaxinfer.sampling.state import SamplingState


def bans_stop(state: SamplingState) -> jax.Array:
    """Bool ``[S]``: rows that may not end yet."""
    return state.num_generated_S < state.min_tokens_S


def changes_logits(state: SamplingState, mask_SW: jax.Array | None) -> jax.Array:
    """Bool ``[S]``: rows for which ``process`` is not the identity."""
    changes_S = (
        (state.is_restricted_S > 0)
        | bans_stop(state)
        | (state.num_biases_S > 0)
        | (state.presence_S != 0)
        | (state.frequency_S != 0)
        | (state.repetition_S != 1)
    )
    if mask_SW is None:
        return changes_S
    return changes_S | jnp.any(mask_SW != all_ids(state.vocab_size)[None], axis=-1)


def process(
    logits_SV: jax.Array,
    state: SamplingState,
    wanted_S: jax.Array,
    mask_SW: jax.Array | None,
    *,
    has_loops: bool = True,
) -> jax.Array:
    """Float32 ``[S, V]``: logits after biases, penalties and masks; ``-inf`` where forbidden.

    Only what some wanted row uses is done; for rows that use none of it nothing changes.
    ``has_loops``: see ``sample``.
    """
    num_biases = jnp.max(jnp.where(wanted_S, state.num_biases_S, 0))
    add_biases = _add_biases if has_loops else _add_all_biases

    def change() -> jax.Array:
        return _penalize_and_mask(add_biases(logits_SV, state, num_biases), state, mask_SW)

    return lax.cond(jnp.any(wanted_S & changes_logits(state, mask_SW)), change, lambda: logits_SV)


def _add_all_biases(logits_SV: jax.Array, state: SamplingState, num_biases: jax.Array) -> jax.Array:
    row_S1 = jnp.arange(logits_SV.shape[0], dtype=jnp.int32)[:, None]
    return lax.cond(
        num_biases > 0,
        lambda: logits_SV.at[row_S1, state.bias_ids_SB].add(state.bias_values_SB, mode="drop"),
        lambda: logits_SV,
    )


def _add_biases(logits_SV: jax.Array, state: SamplingState, num_biases: jax.Array) -> jax.Array:
    row_S1 = jnp.arange(logits_SV.shape[0], dtype=jnp.int32)[:, None]

    def add_chunk(chunk: jax.Array, logits_SV: jax.Array) -> jax.Array:
        ids, values = (
            lax.dynamic_slice_in_dim(array_SB, chunk * BIAS_CHUNK, BIAS_CHUNK, axis=1)
            for array_SB in (state.bias_ids_SB, state.bias_values_SB)
        )
        return logits_SV.at[row_S1, ids].add(values, mode="drop")

    return lax.fori_loop(0, -(-num_biases // BIAS_CHUNK), add_chunk, logits_SV)


def _penalize_and_mask(
    logits_SV: jax.Array, state: SamplingState, mask_SW: jax.Array | None
) -> jax.Array:
    vocab_size = state.vocab_size
    counts_SV = state.output_counts_SV.astype(jnp.float32)
    is_output_SV = counts_SV > 0
    is_seen_SV = is_output_SV | unpack(state.prompt_seen_SW, vocab_size)
    repetition_S1 = state.repetition_S[:, None]
    repeated_SV = jnp.where(logits_SV > 0, logits_SV / repetition_S1, logits_SV * repetition_S1)
    penalized_SV = (
        jnp.where(is_seen_SV, repeated_SV, logits_SV)
        - state.frequency_S[:, None] * counts_SV
        - state.presence_S[:, None] * is_output_SV.astype(jnp.float32)
    )
    # A token that is allowed stays above one that is not, however extreme the penalties.
    most = jnp.finfo(jnp.float32).max
    return jnp.where(
        unpack(_allowed_words(state, mask_SW), vocab_size),
        jnp.clip(penalized_SV, -most, most),
        -jnp.inf,
    )


def _allowed_words(state: SamplingState, mask_SW: jax.Array | None) -> jax.Array:
    allowed_SW = jnp.where(
        bans_stop(state)[:, None], state.allowed_SW & ~state.stop_SW, state.allowed_SW
    )
    if mask_SW is None:
        return allowed_SW
    masked_SW = allowed_SW & mask_SW
    # Where the step's mask leaves nothing, it yields: with all forbidden, any id might come out.
    return jnp.where(jnp.any(masked_SW != 0, axis=-1, keepdims=True), masked_SW, allowed_SW)
