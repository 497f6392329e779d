"""What the device remembers of each slot between steps."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from jaxinfer.sampling import SamplingState, SlotSampling, admit, init_state


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SlotState:
    """One row a slot (S), donated from step to step.

    ``last_token_S``: the token that the next decode step reads. ``num_cached_S``: tokens of the
    sequence in the cache, so the position of that token. ``live_S``: False once the sequence ended
    on the device, or before a sequence was admitted.
    """

    last_token_S: jax.Array
    num_cached_S: jax.Array
    live_S: jax.Array
    sampling: SamplingState


def init_slots(num_slots: int, vocab_size: int) -> SlotState:
    """All slots empty."""
    return SlotState(
        last_token_S=jnp.zeros((num_slots,), jnp.int32),
        num_cached_S=jnp.zeros((num_slots,), jnp.int32),
        live_S=jnp.zeros((num_slots,), jnp.bool_),
        sampling=init_state(num_slots, vocab_size),
    )


def admit_slot(state: SlotState, slot: jax.Array, sampling: SlotSampling) -> SlotState:
    """Slot ``slot`` (int32 scalar) begins a new sequence with these sampling parameters."""
    return replace(
        state,
        last_token_S=state.last_token_S.at[slot].set(0),
        num_cached_S=state.num_cached_S.at[slot].set(0),
        live_S=state.live_S.at[slot].set(True),
        sampling=admit(state.sampling, slot, sampling),
    )
