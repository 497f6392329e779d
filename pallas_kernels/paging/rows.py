"""Who is who in a ragged batch: the row and the position of every token."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.nonnegative import divide, take

Case = Literal["decode", "prefill", "mixed"]
"""What a program is for: rows of few tokens, whole prompts, or both."""


def case_of(distribution_3: object) -> Case:
    """What is known when the program is compiled: a NumPy array says it, a traced one does not."""
    if not isinstance(distribution_3, np.ndarray):
        return "mixed"
    num_decode, num_prefill, num_rows = distribution_3.tolist()
    if num_decode == num_rows:
        return "decode"
    return "prefill" if num_decode == 0 and num_prefill == num_rows else "mixed"


def needed_parts(distribution_3: object) -> tuple[bool, bool]:
    """Whether a program needs the part for rows with one new token, and the part for others, which
    can take any row."""
    if not isinstance(distribution_3, np.ndarray):
        return True, True
    num_decode, _, num_rows = distribution_3.tolist()
    return num_decode > 0, num_decode < num_rows


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows as every implementation sees them: clean of padding, idle rows and ids out of range.

    ``q_lens_S`` and ``kv_lens_S`` are 0 for a row that takes no part. ``row_T`` is in range also
    for padding tokens, which ``is_token_T`` tells apart. ``page_table_SM`` holds 0 for "no page".
    """

    q_starts_S: jax.Array
    q_lens_S: jax.Array
    kv_lens_S: jax.Array
    page_table_SM: jax.Array
    row_T: jax.Array
    position_T: jax.Array
    is_token_T: jax.Array


def describe_rows(
    num_tokens: int,
    num_pages: int,
    page_size: int,
    kv_lens_S: jax.Array,
    page_table_SM: jax.Array,
    cu_q_lens_S1: jax.Array,
    distribution_3: jax.Array,
) -> Rows:
    """Reads the description of a batch. No layer enters, so XLA shares the result among layers.

    Rows that begin before another has ended are idle, so what is left of them never overlaps.
    """
    # Outside of jit they may be NumPy arrays.
    kv_lens_S, cu_q_lens_S1 = jnp.asarray(kv_lens_S), jnp.asarray(cu_q_lens_S1)
    num_slots, pages_per_row = page_table_SM.shape
    slot_S = jnp.arange(num_slots, dtype=jnp.int32)
    is_row_S = slot_S < distribution_3[2]
    starts_S, ends_S = cu_q_lens_S1[:-1], cu_q_lens_S1[1:]
    highest_S1 = _highest_so_far(cu_q_lens_S1)
    q_lens_S = ends_S - starts_S
    fits_S = (kv_lens_S <= pages_per_row * page_size) & (q_lens_S <= kv_lens_S)
    fits_S &= (starts_S >= 0) & (ends_S <= num_tokens) & (starts_S == highest_S1[:-1])
    # Not of the difference, which wraps.
    takes_part_S = is_row_S & (kv_lens_S > 0) & (starts_S < ends_S) & fits_S

    token_T = jnp.arange(num_tokens, dtype=jnp.int32)
    is_past_TS = (highest_S1[None, 1:] <= token_T[:, None]) & is_row_S[None, :]
    row_T = jnp.minimum(is_past_TS.sum(axis=1, dtype=jnp.int32), jnp.int32(num_slots - 1))
    is_inside_T = (token_T >= take(starts_S, row_T)) & (token_T < take(ends_S, row_T))
    is_owned_SM = (page_table_SM > 0) & (page_table_SM < num_pages)
    return Rows(
        q_starts_S=starts_S,
        q_lens_S=jnp.where(takes_part_S, q_lens_S, 0),
        kv_lens_S=jnp.where(takes_part_S, kv_lens_S, 0),
        page_table_SM=jnp.where(is_owned_SM, page_table_SM, 0),
        row_T=row_T,
        position_T=take(kv_lens_S - ends_S, row_T) + token_T,
        is_token_T=is_inside_T & take(takes_part_S, row_T),
    )


def _highest_so_far(borders_S1: jax.Array) -> jax.Array:
    """The running maximum, as one comparison of all with all: ``cummax`` is dozens of operations,
    and all of them take time to compile."""
    place_S1 = jnp.arange(borders_S1.size, dtype=jnp.int32)
    is_before_S1S1 = place_S1[None, :] <= place_S1[:, None]
    return jnp.where(is_before_S1S1, borders_S1[None, :], borders_S1[0]).max(axis=1)


def token_pages(rows: Rows, page_size: int) -> tuple[jax.Array, jax.Array]:
    """The page and the offset in it where each token's key and value belong; page 0 for padding."""
    position_T = jnp.where(rows.is_token_T, rows.position_T, 0)
    page_T = take(rows.page_table_SM, rows.row_T, divide(position_T, page_size))
    return jnp.where(rows.is_token_T, page_T, 0), jax.lax.rem(position_T, jnp.int32(page_size))
