"""One step of sampling for every slot: logits in, tokens and what became of the slots out."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from jaxinfer.sampling.bits import contains
from jaxinfer.sampling.draw import choose, greedy
from jaxinfer.sampling.processors import changes_logits, process
from jaxinfer.sampling.rows import ROWS_AT_ONCE, map_rows
from jaxinfer.sampling.scores import MAX_LOGPROBS, no_scores, score
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
    has_loops: bool = True,
) -> tuple[SampleOutput, SamplingState]:
    """Chooses a token for each active slot and counts it.

    A row's result depends on that row alone, bit for bit, and what no active row uses costs
    nothing. The order of work is vLLM's: masks, biases and penalties (``processors``),
    temperature, min-p, top-k and top-p (``filters``), the draw (``draw``). Log-probabilities are
    of the logits as they came in.

    Args:
        logits_SV: float32. Columns beyond the state's vocabulary (padding) are never looked at.
        active_S: Bool; other rows are neither sampled nor counted, and may hold NaN.
        mask_SW: uint32, packed bits of the ids allowed in this step, beside each slot's own; not
            looked at in a row that it would leave without any.
        has_loops: False takes all rows at once, without a loop. A GPU wants that: its graphs of
            kernels have branches, but at a loop the host would wait for the device.
    """
    logits_SV = logits_SV[:, : state.vocab_size]
    special_S = active_S & ((state.temperature_S > 0) | changes_logits(state, mask_SW))
    tokens_S = lax.cond(
        jnp.any(active_S & ~special_S),
        lambda: greedy(logits_SV),
        lambda: jnp.zeros(active_S.shape, jnp.int32),
    )
    rows_at_once = ROWS_AT_ONCE if has_loops else None
    tokens_S = map_rows(
        functools.partial(_choose, has_loops=has_loops),
        special_S,
        (logits_SV, state, mask_SW),
        tokens_S,
        rows_at_once=rows_at_once,
    )
    tokens_S = jnp.where(active_S, tokens_S, 0)
    scores = map_rows(
        lambda _, operands: score(*operands, max_logprobs=max_logprobs),
        active_S & (state.num_logprobs_S >= 0),
        (logits_SV, tokens_S),
        no_scores(len(tokens_S), max_logprobs),
        rows_at_once=rows_at_once,
    )
    output = SampleOutput(
        tokens_S=tokens_S,
        finish_S=jnp.where(active_S, _finish(state, tokens_S), NOT_FINISHED),
        logprob_S=scores.logprob_R,
        rank_S=scores.rank_R,
        top_ids_SA=scores.top_ids_RA,
        top_logprobs_SA=scores.top_logprobs_RA,
    )
    return output, record(state, tokens_S, active_S)


def _choose(
    wanted_S: jax.Array,
    operands: tuple[jax.Array, SamplingState, jax.Array | None],
    *,
    has_loops: bool,
) -> jax.Array:
    logits_SV, state, mask_SW = operands
    processed_SV = process(logits_SV, state, wanted_S, mask_SW, has_loops=has_loops)
    return choose(processed_SV, state, wanted_S, has_loops=has_loops)


def _finish(state: SamplingState, tokens_S: jax.Array) -> jax.Array:
    is_last_S = state.num_generated_S + 1 >= state.max_tokens_S
    ends_S = contains(state.stop_SW, tokens_S)
    return jnp.where(ends_S, STOP, jnp.where(is_last_S, LENGTH, NOT_FINISHED)).astype(jnp.int32)
