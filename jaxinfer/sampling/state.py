"""What the device remembers of each slot's sampling parameters and tokens."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jax import lax

from jaxinfer.sampling.slot import SlotSampling, blank_slot_sampling


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SamplingState:
    """One row a slot (S), donated from step to step. Fields stand in ``SlotSampling``'s order.

    W = ceil(V / 32) words of packed bits; B biased ids at most. Counts are kept in uint16, and stay
    at 65,535 once there. No 16-bit floats: XLA copies such arrays on the CPU instead of updating
    them in place.
    """

    temperature_S: jax.Array
    top_k_S: jax.Array
    top_p_S: jax.Array
    min_p_S: jax.Array
    presence_S: jax.Array
    frequency_S: jax.Array
    repetition_S: jax.Array
    key_S2: jax.Array
    num_biases_S: jax.Array
    bias_ids_SB: jax.Array
    bias_values_SB: jax.Array
    is_restricted_S: jax.Array
    allowed_SW: jax.Array
    stop_SW: jax.Array
    min_tokens_S: jax.Array
    max_tokens_S: jax.Array
    num_generated_S: jax.Array
    prompt_seen_SW: jax.Array
    output_counts_SV: jax.Array
    num_logprobs_S: jax.Array

    @property
    def vocab_size(self) -> int:
        return self.output_counts_SV.shape[1]


def init_state(num_slots: int, vocab_size: int) -> SamplingState:
    """Every slot blank: greedy, nothing forbidden, nothing generated."""
    leaves, _ = jax.tree.flatten(blank_slot_sampling(vocab_size))
    names = SamplingState.__dataclass_fields__
    return SamplingState(
        **{
            name: jnp.broadcast_to(jnp.asarray(leaf), (num_slots, *leaf.shape)).copy()
            for name, leaf in zip(names, leaves, strict=True)
        }
    )


def admit(state: SamplingState, slot: jax.Array, row: SlotSampling) -> SamplingState:
    """Slot ``slot`` (int32 scalar) takes ``row``'s values; in place where ``state`` is donated."""
    leaves, treedef = jax.tree.flatten(state)
    rows = jax.tree.leaves(row)
    return jax.tree.unflatten(
        treedef,
        [
            lax.dynamic_update_index_in_dim(leaf, jnp.asarray(value), slot, 0)
            for leaf, value in zip(leaves, rows, strict=True)
        ],
    )


def record(state: SamplingState, tokens_S: jax.Array, active_S: jax.Array) -> SamplingState:
    """Counts each active row's token as generated."""
    row_S = jnp.arange(tokens_S.shape[0], dtype=jnp.int32)
    count_S = state.output_counts_SV[row_S, tokens_S]
    count_S = jnp.where(count_S == jnp.uint16(65535), count_S, count_S + jnp.uint16(1))
    column_S = jnp.where(active_S, tokens_S, state.vocab_size)
    return replace(
        state,
        output_counts_SV=state.output_counts_SV.at[row_S, column_S].set(count_S, mode="drop"),
        num_generated_S=state.num_generated_S + active_S.astype(jnp.int32),
    )
