"""Attention within chunks of positions, as Llama 4 has it, told to the kernel as rows of their own.

A token sees those of its own chunk up to itself: positions ``i // chunk * chunk`` to ``i``. So what
a row adds to one chunk is a row that begins where the chunk does, with the pages of the chunk for
its table, and the kernel needs to know nothing of chunks. Keys are rotated already.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer.batch import Ragged
from jaxinfer.errors import ConfigError


def rows_of_chunks(
    chunk: int, page_size: int, num_tokens: int, page_table_SM: jax.Array, ragged: Ragged
) -> tuple[jax.Array, Ragged]:
    """The page table ``[C, chunk / page_size]`` and the description of the rows' parts.

    Each row gives a part for each chunk that its new tokens fall into, one after the other; a row
    that is idle gives one that is. Parts have nothing cached but what their row had of the chunk.

    Raises:
        ConfigError: pages that reach over the end of a chunk.
    """
    if chunk % page_size:
        raise ConfigError(
            f"page_size = {page_size} does not divide chunks of {chunk} tokens: take one that does"
        )
    num_slots, pages_per_row = page_table_SM.shape
    columns = chunk // page_size
    lens_S, borders_S1 = ragged.kv_lens_S, ragged.cu_q_lens_S1
    past_S = lens_S - jnp.diff(borders_S1)
    # What contradicts itself is idle, as the kernel has it.
    is_live_S = (past_S < lens_S) & (past_S >= 0) & (lens_S <= pages_per_row * page_size)
    first_S, last_S = (lax.div(x, jnp.int32(chunk)) for x in (past_S, lens_S - 1))
    num_parts_S = jnp.where(is_live_S, last_S - first_S + 1, 1)
    ends_S = jnp.cumsum(num_parts_S, dtype=jnp.int32)

    is_decode = ragged.is_decode
    # A row of q tokens falls into at most q chunks, and (q - 1) // chunk + 2.
    most = num_slots + min(num_slots + num_tokens // chunk, num_tokens)
    part_C = jnp.arange(num_slots if is_decode else most, dtype=jnp.int32)
    row_C = (ends_S[None, :] <= part_C[:, None]).sum(axis=1, dtype=jnp.int32)
    is_part_C = _take(is_live_S, row_C) & (part_C < ends_S[-1])
    chunk_C = _take(first_S - (ends_S - num_parts_S), row_C) + part_C
    begin_C = chunk_C * chunk
    new_before_C = jnp.where(is_part_C, jnp.maximum(begin_C - _take(past_S, row_C), 0), 0)
    border_C = _take(borders_S1[:-1], row_C) + new_before_C
    border_C = jnp.where(part_C < ends_S[-1], border_C, borders_S1[-1])
    # A slice is never beyond the end of what it is cut from.
    page_table_SM = jnp.pad(page_table_SM, ((0, 0), (0, columns)))
    page_CM = jax.vmap(
        lambda row, column: lax.dynamic_slice(page_table_SM, (row, column), (1, columns))[0]
    )(row_C, chunk_C * columns)
    return jnp.where(is_part_C[:, None], page_CM, 0), Ragged(
        kv_lens_S=jnp.where(is_part_C, jnp.minimum(_take(lens_S, row_C) - begin_C, chunk), 0),
        cu_q_lens_S1=jnp.concatenate([border_C, borders_S1[-1:]]),
        distribution_3=None if is_decode else _zones_of_parts(ragged, ends_S),
        fixed_distribution=ragged.fixed_distribution if is_decode else None,
    )


def _zones_of_parts(ragged: Ragged, ends_S: jax.Array) -> jax.Array:
    """A row of one token has one part, and one without a past has only such: zones stay zones."""
    ends_S1 = jnp.concatenate([jnp.zeros(1, jnp.int32), ends_S])
    if ragged.fixed_distribution is not None:
        return ends_S1[np.asarray(ragged.fixed_distribution)]
    assert ragged.distribution_3 is not None
    return _take(ends_S1, ragged.distribution_3)


def _take(array: jax.Array, index: jax.Array) -> jax.Array:
    return array.at[index].get(mode="clip", wrap_negative_indices=False)
