"""Rows with one new token on the CPU: machine code where the CPU that is here can run it."""

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch, native
from pallas_kernels.nonnegative import take
from pallas_kernels.paging.softmax import NO_TOP
from pallas_kernels.ragged_paged_attention.xla_call import Call

LEAST_LANES = 4
"""Heads are cut into vectors of at least so many numbers."""

MOST_LOGITS = 1 << 14
"""Of a page and the query heads of a kv head: they lie on a thread's stack."""


def refuse(call: Call) -> str | None:
    """Why the machine code cannot run this call, or None."""
    chip = dispatch.chip()
    if chip.platform != "cpu":
        return f"the chip is {chip.kind} ({chip.platform})"
    if call.pages.dtype != jnp.bfloat16:
        return f"the pages hold {call.pages.dtype}, not bfloat16"
    if call.options.logit_softcap is not None:
        return "the logits are capped"
    if call.pages.head_dim % LEAST_LANES:
        return f"head_dim = {call.pages.head_dim} is not a multiple of {LEAST_LANES}"
    num_logits = call.q_TKGH.shape[2] * call.pages.page_size
    if num_logits > MOST_LOGITS:
        return f"{num_logits:,} logits of a page are more than {MOST_LOGITS:,}"
    return native.missing()


def attend_single_rows(call: Call, is_single_S: jax.Array) -> jax.Array:
    """As ``xla_items.attend_single_rows``, for what ``refuse`` has no reason against."""
    from pallas_kernels.ragged_paged_attention.cpu_kernel import register_kernel

    rows, pages = call.rows, call.pages
    num_kv_heads, group_size, head_dim = call.q_TKGH.shape[1:]
    name = register_kernel(group_size, head_dim, pages.page_size)
    sinks_KG = call.sinks_KG
    if sinks_KG is None:
        sinks_KG = jnp.full((num_kv_heads, group_size), NO_TOP, jnp.float32)
    last_S = jnp.where(is_single_S, rows.kv_lens_S, 0)
    first_S = call.first_seen(rows.kv_lens_S - 1)
    q_SKGH = call.scaled(take(call.q_TKGH, rows.q_starts_S))
    out = jax.ShapeDtypeStruct(q_SKGH.shape, jnp.float32)
    out_SKGH = jax.ffi.ffi_call(name, out)(
        q_SKGH, pages.keys_PKHp, pages.values_PKpH, rows.page_table_SM, first_S, last_S, sinks_KG
    )
    is_single_T = rows.is_token_T & take(is_single_S, rows.row_T)
    return jnp.where(is_single_T[:, None, None, None], take(out_SKGH, rows.row_T), 0.0)
