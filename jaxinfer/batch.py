"""Rows of one step as padded arrays: the only place where lists of tokens become a batch.

A step's rows cross to the device in one int32 buffer; ``pack_*`` (numpy, host) and ``unpack_*``
(traced) stand side by side here and are each other's inverse.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np


class RowLike(Protocol):
    """What a step needs to know of one sequence; ``jaxinfer.engine.step.Row`` is one."""

    @property
    def slot(self) -> int: ...
    @property
    def start(self) -> int: ...
    @property
    def tokens(self) -> np.ndarray | None: ...
    @property
    def samples(self) -> bool: ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Ragged:
    """Where each row begins and how long its past is; see the attention kernel's contract.

    ``kv_lens_S``: length of each row after this step, 0 for an idle row. ``cu_q_lens_S1``: borders
    of the rows in the flat tokens. ``distribution_3``: ends of decode rows, of pure prefill rows,
    of all rows. All int32. Where the distribution is the same in every step of a program it stands
    in ``fixed_distribution`` instead, so that nothing is compiled for zones without rows.
    """

    kv_lens_S: jax.Array
    cu_q_lens_S1: jax.Array
    distribution_3: jax.Array | None
    fixed_distribution: tuple[int, int, int] | None = field(default=None, metadata={"static": True})

    @property
    def is_decode(self) -> bool:
        """Whether every row of the program has one token."""
        return self.fixed_distribution == (self.kv_lens_S.shape[0],) * 3

    def live_tokens(self, num_tokens: int) -> jax.Array:
        """Bool ``[T]``: which of the flat tokens belong to a row that is not idle."""
        num_slots = self.kv_lens_S.shape[0]
        if self.fixed_distribution is not None:
            num_rows = jnp.int32(self.fixed_distribution[2])
        else:
            assert self.distribution_3 is not None
            num_rows = self.distribution_3[2]
        is_row_S = jnp.arange(num_slots, dtype=jnp.int32) < num_rows
        end_S = jnp.where(is_row_S, self.cu_q_lens_S1[1:], num_tokens)
        token_T = jnp.arange(num_tokens, dtype=jnp.int32)
        row_T = (end_S[None, :] <= token_T[:, None]).sum(axis=1, dtype=jnp.int32)
        return (row_T < num_rows) & (self.kv_lens_S.at[row_T].get(mode="clip") > 0)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class PrefillBatch:
    """Ragged chunks of prompts, with decode rows before them; ``S`` rows, ``T`` tokens, int32.

    ``slots_S``: the slot of each row, ``S`` for none. ``starts_S``: tokens of the row already in
    the cache. ``samples_S``: 1 where the row's last token is sampled from. Decode rows (the first
    ``distribution_3[0]``) take token and start from their slot's state instead.
    """

    tokens_T: jax.Array
    slots_S: jax.Array
    starts_S: jax.Array
    samples_S: jax.Array
    cu_q_lens_S1: jax.Array
    distribution_3: jax.Array


def pack_prefill(rows: Sequence[RowLike], num_tokens: int, num_slots: int) -> np.ndarray:
    """One int32 buffer for ``unpack_prefill``: decode rows first, then rows with nothing cached,
    then the rest.
    """
    decodes = sum(row.tokens is None for row in rows)
    pure = sum(row.tokens is not None and row.start == 0 for row in rows)
    tokens_T = np.zeros(num_tokens, np.int32)
    per_row = np.zeros((3, num_slots), np.int32)
    per_row[0] = num_slots
    borders = np.zeros(num_slots + 1, np.int32)
    end = 0
    for index, row in enumerate(rows):
        begin = end
        end = begin + (1 if row.tokens is None else len(row.tokens))
        if row.tokens is not None:
            tokens_T[begin:end] = row.tokens
        per_row[:, index] = row.slot, row.start, row.samples
        borders[index + 1] = end
    borders[len(rows) + 1 :] = end
    distribution = np.array([decodes, decodes + pure, len(rows)], np.int32)
    return np.concatenate((tokens_T, per_row.ravel(), borders, distribution))


def prefill_buffer_size(num_tokens: int, num_slots: int) -> int:
    """The length of ``pack_prefill``'s buffer."""
    return num_tokens + 3 * num_slots + (num_slots + 1) + 3


def unpack_prefill(buffer: jax.Array, num_slots: int) -> PrefillBatch:
    """The arrays of ``pack_prefill``."""
    num_tokens = buffer.shape[0] - prefill_buffer_size(0, num_slots)
    sizes = (num_tokens, num_slots, num_slots, num_slots, num_slots + 1, 3)
    tokens, slots, starts, samples, borders, distribution = jnp.split(
        buffer, np.cumsum(sizes)[:-1].tolist()
    )
    return PrefillBatch(
        tokens_T=tokens,
        slots_S=slots,
        starts_S=starts,
        samples_S=samples,
        cu_q_lens_S1=borders,
        distribution_3=distribution,
    )


def pack_decode(rows: Sequence[RowLike], num_slots: int) -> np.ndarray:
    """Int32 ``[S]``: 1 for the slots that decode in this step."""
    planned_S = np.zeros(num_slots, np.int32)
    for row in rows:
        planned_S[row.slot] = 1
    return planned_S


def pack_few(rows: Sequence[RowLike], num_rows: int, num_slots: int) -> np.ndarray:
    """Int32 ``[R]``: the slots that decode in this step, then ``num_slots`` for idle rows."""
    slots_R = np.full(num_rows, num_slots, np.int32)
    slots_R[: len(rows)] = [row.slot for row in rows]
    return slots_R


def decode_ragged(kv_lens_S: jax.Array) -> Ragged:
    """One token a slot; slots whose length is 0 are idle."""
    num_slots = kv_lens_S.shape[0]
    return Ragged(
        kv_lens_S=kv_lens_S,
        cu_q_lens_S1=jnp.arange(num_slots + 1, dtype=jnp.int32),
        distribution_3=None,
        fixed_distribution=(num_slots, num_slots, num_slots),
    )
