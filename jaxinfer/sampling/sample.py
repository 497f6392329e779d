"""One step of sampling for every slot: logits in, tokens and what became of the slots out."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from jaxinfer.sampling.bits import contains
from jaxinfer.sampling.draw import choose
from jaxinfer.sampling.processors import changes_logits, process
from jaxinfer.sampling.scores import MAX_LOGPROBS, Scores, score
from jaxinfer.sampling.state import SamplingState, record

#: Codes of ``SampleOutput.finish_S``.
NOT_FINISHED, STOP, LENGTH = 0, 1, 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SampleOutput:
    """What ``sample`` chose; rows that are not active are zero in every field.

    Attributes:
        tokens_S: int32.
        finish_S: int32; 1 where the token ends the sequence, 2 where it was the last one allowed.
        logprob_S: float32, of the raw logits, as are the next three; zero for rows that did not
            ask for log-probabilities. See ``Scores``.
        rank_S: int32.
        top_ids_SA: int32.
        top_logprobs_SA: float32.
    """

    tokens_S: jax.Array
    finish_S: jax.Array
    logprob_S: jax.Array
    rank_S: jax.Array
    top_ids_SA: jax.Array
    top_logprobs_SA: jax.Array


def sample(
    logits_SV: jax.Array,
    state: SamplingState,
    active_S: jax.Array,
    mask_SW: jax.Array | None = None,
    *,
    max_logprobs: int = MAX_LOGPROBS,
) -> tuple[SampleOutput, SamplingState]:
    """Chooses a token for each active slot and counts it.

    A row's result depends on that row alone, bit for bit, and what no active row uses costs
    nothing. The order of work is vLLM's: masks, biases and penalties (``processors``),
    temperature, min-p, top-k and top-p (``filters``), the draw (``draw``). Log-probabilities are
    of the logits as they came in.

    Args:
        logits_SV: float32. Columns beyond the state's vocabulary (padding) are never looked at.
        active_S: Bool; other rows are neither sampled nor counted, and may hold NaN.
        mask_SW: uint32, packed bits of the ids allowed in this step, beside each slot's own.
    """
    logits_SV = logits_SV[:, : state.vocab_size]
    changes_S = active_S & changes_logits(state, mask_SW)
    # Two programs instead of one with a conditional before it: the untouched logits are not copied.
    tokens_S = lax.cond(
        jnp.any(changes_S),
        lambda: choose(process(logits_SV, state, active_S, mask_SW), state, active_S),
        lambda: choose(logits_SV, state, active_S),
    )
    tokens_S = jnp.where(active_S, tokens_S, 0)
    scores = _scores(logits_SV, tokens_S, active_S & (state.num_logprobs_S >= 0), max_logprobs)
    output = SampleOutput(
        tokens_S=tokens_S,
        finish_S=jnp.where(active_S, _finish(state, tokens_S), NOT_FINISHED),
        logprob_S=scores.logprob_R,
        rank_S=scores.rank_R,
        top_ids_SA=scores.top_ids_RA,
        top_logprobs_SA=scores.top_logprobs_RA,
    )
    return output, record(state, tokens_S, active_S)


def _finish(state: SamplingState, tokens_S: jax.Array) -> jax.Array:
    is_last_S = state.num_generated_S + 1 >= state.max_tokens_S
    ends_S = contains(state.stop_SW, tokens_S)
    return jnp.where(ends_S, STOP, jnp.where(is_last_S, LENGTH, NOT_FINISHED)).astype(jnp.int32)


def _scores(
    logits_SV: jax.Array, tokens_S: jax.Array, wants_S: jax.Array, max_logprobs: int
) -> Scores:
    def wanted_scores() -> Scores:
        scores = score(logits_SV, tokens_S, max_logprobs=max_logprobs)
        return jax.tree.map(
            lambda leaf: jnp.where(
                lax.expand_dims(wants_S, range(1, leaf.ndim)), leaf, jnp.zeros_like(leaf)
            ),
            scores,
        )

    shapes = jax.eval_shape(wanted_scores)
    return lax.cond(
        jnp.any(wants_S),
        wanted_scores,
        lambda: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes),
    )
