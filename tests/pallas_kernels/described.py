"""Rows as the kernels of all attentions over pages find them described."""

import jax.numpy as jnp
import numpy as np

from pallas_kernels.paging.rows import describe_rows


def described(kv_lens, borders, *, num_tokens, table=None, page_size=64, pages_per_row=16):
    slots = len(kv_lens)
    table = np.ones((slots, pages_per_row), np.int32) if table is None else table
    return describe_rows(
        num_tokens,
        1_000_000,
        page_size,
        jnp.asarray(kv_lens, jnp.int32),
        jnp.asarray(table, jnp.int32),
        jnp.asarray(borders, jnp.int32),
        jnp.asarray([0, 0, slots], jnp.int32),
    )


def described_rows(lens, *, num_tokens=64, **sizes):
    """Rows as ``(new tokens, length after)``."""
    borders = np.cumsum([0, *(new for new, _ in lens)])
    return described([length for _, length in lens], borders, num_tokens=num_tokens, **sizes)
