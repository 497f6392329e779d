"""The jitted steps of autoregressive decoding: ``prefill``, ``decode``, and ``sample_slots``.

A step is one of the first two and then the third; ``decode_few`` is ``decode`` of fewer rows than
slots. They are functions of values: the cache and the state go in and come out, donated. Row
results do not depend on neighbours: an idle row has length 0 and nothing of it is read or written.
Sampling stands apart so that it is compiled once for all sizes of steps.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import lax

from jaxinfer.batch import Ragged, decode_ragged, unpack_prefill
from jaxinfer.cache import Cache
from jaxinfer.decoding.slots import SlotState
from jaxinfer.models.decoder import Decoder
from jaxinfer.sampling import SampleOutput, Scores, sample, score

_FEW_SLOTS = 4


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SlotLogits:
    """What the model says of each slot's next token; S slots, V vocabulary.

    Attributes:
        logits_SV: float32; meaningless for slots that had no row.
        kv_lens_S: int32, tokens in the cache after the step.
        has_row_S: bool, whether the slot was in the step.
        samples_S: bool, whether its next token is to be sampled: not within a prompt.
    """

    logits_SV: jax.Array
    kv_lens_S: jax.Array
    has_row_S: jax.Array
    samples_S: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class StepOutput:
    """What a step sampled; J decode steps of one call (1 in prefill), S slots, A alternatives.

    ``events_J3S``: int32 token, whether one was sampled, and the finish code. The rest are of the
    raw logits, meaningful for slots that asked for log-probabilities.
    """

    events_J3S: jax.Array
    logprob_JS: jax.Array
    rank_JS: jax.Array
    top_ids_JSA: jax.Array
    top_logprobs_JSA: jax.Array


def decode(
    decoder: Decoder,
    cache: Cache,
    state: SlotState,
    page_tables: tuple[jax.Array, ...],
    planned_S: jax.Array,
) -> tuple[Cache, SlotLogits]:
    """Feeds the last token of every planned slot that is live."""
    active_S = state.live_S & (planned_S > 0)
    kv_lens_S = jnp.where(active_S, state.num_cached_S + 1, 0)
    hidden_SD, cache = decoder(
        state.last_token_S, state.num_cached_S, cache, page_tables, decode_ragged(kv_lens_S)
    )
    logits = SlotLogits(
        logits_SV=decoder.logits(hidden_SD),
        kv_lens_S=kv_lens_S,
        has_row_S=active_S,
        samples_S=active_S,
    )
    return cache, logits


def decode_few(
    decoder: Decoder,
    cache: Cache,
    state: SlotState,
    page_tables: tuple[jax.Array, ...],
    slots_R: jax.Array,
) -> tuple[Cache, SlotLogits]:
    """``decode`` of the slots ``slots_R`` alone, each at most once; R rows, ``S`` for an idle one.

    The model computes R rows and not S; only the logits are spread to their slots.
    """
    num_slots = state.live_S.shape[0]
    slot_R = jnp.minimum(slots_R, num_slots - 1)
    active_R = (slots_R < num_slots) & state.live_S[slot_R]
    start_R = state.num_cached_S[slot_R]
    kv_lens_R = jnp.where(active_R, start_R + 1, 0)
    tables = tuple(table_SM[slot_R] for table_SM in page_tables)
    hidden_RD, cache = decoder(
        state.last_token_S[slot_R], start_R, cache, tables, decode_ragged(kv_lens_R)
    )
    place_R = jnp.where(active_R, slot_R, num_slots)

    def by_slot(values_R: jax.Array) -> jax.Array:
        blank_S = jnp.zeros((num_slots, *values_R.shape[1:]), values_R.dtype)
        return blank_S.at[place_R].set(values_R, mode="drop")

    has_row_S = by_slot(active_R)
    logits = SlotLogits(
        logits_SV=by_slot(decoder.logits(hidden_RD)),
        kv_lens_S=by_slot(kv_lens_R),
        has_row_S=has_row_S,
        samples_S=has_row_S,
    )
    return cache, logits


def decode_steps(
    decoder: Decoder,
    cache: Cache,
    state: SlotState,
    page_tables: tuple[jax.Array, ...],
    planned_S: jax.Array,
    mask_SW: jax.Array,
    *,
    num_steps: int,
    has_loops: bool = True,
) -> tuple[Cache, SlotState, StepOutput]:
    """``decode`` and ``sample_slots``, ``num_steps`` times in one call.

    ``has_loops``: see ``sample``; without, each of the steps is compiled by itself.
    """

    def body(carry: tuple[Cache, SlotState], _: None) -> tuple[tuple, StepOutput]:
        cache, state = carry
        cache, logits = decode(decoder, cache, state, page_tables, planned_S)
        state, output = sample_slots(state, logits, mask_SW, has_loops=has_loops)
        return (cache, state), jax.tree.map(lambda leaf: leaf[0], output)

    (cache, state), outputs = lax.scan(body, (cache, state), length=num_steps, unroll=not has_loops)
    return cache, state, outputs


def prefill(
    decoder: Decoder,
    cache: Cache,
    state: SlotState,
    page_tables: tuple[jax.Array, ...],
    packed: jax.Array,
) -> tuple[Cache, SlotLogits, jax.Array]:
    """Chunks of prompts beside decode rows. ``packed``: see ``jaxinfer.batch.pack_prefill``.

    The last value is the final hidden state ``[T, D]`` of every token, from which
    ``score_rows`` makes log-probabilities of a prompt where they are wanted.
    """
    num_slots = state.live_S.shape[0]
    batch = unpack_prefill(packed, num_slots)
    row_S = jnp.arange(num_slots, dtype=jnp.int32)
    slot_S = jnp.minimum(batch.slots_S, num_slots - 1)
    exists_S = (row_S < batch.distribution_3[2]) & (batch.slots_S < num_slots)
    active_S = exists_S & state.live_S[slot_S]
    decodes_S = row_S < batch.distribution_3[0]
    start_S = jnp.where(decodes_S, state.num_cached_S[slot_S], batch.starts_S)
    length_S = start_S + jnp.diff(batch.cu_q_lens_S1)
    # With few slots, what the decode rows of a mixed step would gain from code of their own is less
    # than that code takes to compile.
    is_small = num_slots <= _FEW_SLOTS
    ragged = Ragged(
        kv_lens_S=jnp.where(active_S, length_S, 0),
        cu_q_lens_S1=batch.cu_q_lens_S1,
        distribution_3=None if is_small else batch.distribution_3,
        fixed_distribution=(0, 0, num_slots) if is_small else None,
    )

    token_T = jnp.arange(batch.tokens_T.shape[0], dtype=jnp.int32)
    # Compared with all, for a binary search is a loop, which parts a GPU's graph of kernels.
    row_T = jnp.searchsorted(
        batch.cu_q_lens_S1[1:], token_T, side="right", method="compare_all"
    ).astype(jnp.int32)
    row_T = jnp.minimum(row_T, num_slots - 1)
    positions_T = start_S[row_T] + token_T - batch.cu_q_lens_S1[row_T]
    tokens_T = jnp.where(decodes_S[row_T], state.last_token_S[slot_S[row_T]], batch.tokens_T)
    tables = tuple(table_SM[slot_S] for table_SM in page_tables)
    hidden_TD, cache = decoder(tokens_T, positions_T, cache, tables, ragged)

    # From rows to slots: sampling state lies by slot, and rows are few enough to permute instead.
    place_S = jnp.where(active_S, slot_S, num_slots)
    last_S = jnp.maximum(batch.cu_q_lens_S1[1:] - 1, 0)

    def by_slot(values_S: jax.Array) -> jax.Array:
        return jnp.zeros_like(values_S).at[place_S].set(values_S, mode="drop")

    has_row_S = by_slot(active_S)
    logits = SlotLogits(
        logits_SV=decoder.logits(hidden_TD[by_slot(last_S)]),
        kv_lens_S=jnp.where(has_row_S, by_slot(length_S), 0),
        has_row_S=has_row_S,
        samples_S=by_slot(active_S & (batch.samples_S > 0)),
    )
    return cache, logits, hidden_TD


def score_rows(
    decoder: Decoder, hidden_TD: jax.Array, index_R: jax.Array, target_R: jax.Array
) -> Scores:
    """Log-probabilities of ``target_R`` after the tokens ``index_R`` of a prefill.

    A fixed number of rows R, so that logits of a whole prompt are never held at once.
    """
    return score(decoder.logits(hidden_TD[index_R]), target_R)


def sample_slots(
    state: SlotState, logits: SlotLogits, mask_SW: jax.Array, *, has_loops: bool = True
) -> tuple[SlotState, StepOutput]:
    """Samples where it is asked for, and remembers lengths for every slot that had a row.

    ``mask_SW``: packed bits of the tokens allowed in this step, beside each slot's own mask. The
    output has J = 1. ``has_loops``: see ``sample``.
    """
    samples_S = logits.samples_S
    with jax.named_scope("sample"):
        sampled, sampling = sample(
            logits.logits_SV, state.sampling, samples_S, mask_SW, has_loops=has_loops
        )
    finished_S = samples_S & (sampled.finish_S > 0)
    state = replace(
        state,
        last_token_S=jnp.where(samples_S, sampled.tokens_S, state.last_token_S),
        num_cached_S=jnp.where(logits.has_row_S, logits.kv_lens_S, state.num_cached_S),
        live_S=state.live_S & ~finished_S,
        sampling=sampling,
    )
    output = _output(sampled, samples_S)
    return state, jax.tree.map(lambda leaf: leaf[None], output)


def _output(sampled: SampleOutput, samples_S: jax.Array) -> StepOutput:
    emitted_S = samples_S.astype(jnp.int32)
    events_3S = jnp.stack((sampled.tokens_S, emitted_S, sampled.finish_S * emitted_S))
    return StepOutput(
        events_J3S=events_3S,
        logprob_JS=sampled.logprob_S,
        rank_JS=sampled.rank_S,
        top_ids_JSA=sampled.top_ids_SA,
        top_logprobs_JSA=sampled.top_logprobs_SA,
    )
