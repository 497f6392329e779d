"""The parts of ``xla`` as machine code, where the CPU that is here can run it."""

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch, native
from pallas_kernels.nonnegative import take
from pallas_kernels.paging.softmax import NO_TOP
from pallas_kernels.paging.tiles import list_tiles
from pallas_kernels.ragged_paged_attention.xla_call import Call

MOST_QUERIES = 32
"""Tokens of a tile that the code has room for."""

TILE_QUERIES = MOST_QUERIES
"""Tokens of a tile."""

MOST_POSITIONS = 64
"""Positions of a page that a tile takes at once."""

LEAST_LANES = 4
"""Heads are cut into vectors of at least so many numbers."""

MOST_NUMBERS = 1 << 16
"""That lie on a thread's stack."""


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
    if (needed := _stack_numbers(call)) > MOST_NUMBERS:
        return f"{needed:,} numbers on a thread's stack are more than {MOST_NUMBERS:,}"
    return native.missing()


def _stack_numbers(call: Call) -> int:
    """The most that a part of a call keeps to itself, in float32."""
    group_size, page_size = call.q_TKGH.shape[2], call.pages.page_size
    block = min(page_size, MOST_POSITIONS)
    of_row = group_size * (page_size + 2)
    of_tile = 2 * group_size * MOST_QUERIES + 2 * block * call.pages.head_dim
    return max(of_row, of_tile)


def attend_single_rows(call: Call, is_single_S: jax.Array) -> jax.Array:
    """As ``xla_items.attend_single_rows``, for what ``refuse`` has no reason against."""
    from pallas_kernels.ragged_paged_attention.cpu_kernel import register_kernel

    rows, pages = call.rows, call.pages
    group_size, head_dim = call.q_TKGH.shape[2:]
    name = register_kernel(group_size, head_dim, pages.page_size)
    out_TKGH = jax.ffi.ffi_call(name, _result(call))(
        call.scaled(call.q_TKGH),
        pages.keys_PKHp,
        pages.values_PKpH,
        rows.page_table_SM,
        rows.q_starts_S,
        call.first_seen(rows.kv_lens_S - 1),
        jnp.where(is_single_S, rows.kv_lens_S, 0),
        _sinks(call),
    )
    return _only_of(call, is_single_S, out_TKGH, 0.0)


def attend_tiles(call: Call, is_tiled_S: jax.Array, out_TKGH: jax.Array) -> jax.Array:
    """As ``xla_tiles.attend_tiles`` where all keys and values are in pages, for what ``refuse`` has
    no reason against."""
    from pallas_kernels.ragged_paged_attention.cpu_tile_kernel import (
        multiplies_bfloat16,
        register_kernel,
    )

    rows, pages = call.rows, call.pages
    group_size, head_dim = call.q_TKGH.shape[2:]
    is_paired = call.q_TKGH.dtype == jnp.bfloat16 and multiplies_bfloat16()
    q_TKGH = call.q_TKGH if is_paired else call.q_TKGH.astype(jnp.float32)
    name = register_kernel(group_size, head_dim, pages.page_size, is_paired=is_paired)
    num_tiles, tiles = list_tiles(rows, is_tiled_S, TILE_QUERIES)
    last_T = rows.position_T + 1 if call.options.causal else take(rows.kv_lens_S, rows.row_T)
    factor_K = jnp.full(pages.num_kv_heads, call.options.scale, jnp.float32)
    if call.k_scale_K is not None:
        factor_K *= call.k_scale_K.astype(jnp.float32)
    new_TKGH = jax.ffi.ffi_call(name, _result(call))(
        q_TKGH,
        pages.keys_PKHp,
        pages.values_PKpH,
        rows.page_table_SM,
        tiles.row_J,
        tiles.token_J,
        tiles.num_queries_J,
        num_tiles,
        call.first_seen(rows.position_T),
        last_T,
        _sinks(call),
        factor_K,
    )
    return _only_of(call, is_tiled_S, new_TKGH, out_TKGH)


def _result(call: Call) -> jax.ShapeDtypeStruct:
    """Of a kernel, which writes nothing for tokens of other rows."""
    return jax.ShapeDtypeStruct(call.q_TKGH.shape, jnp.float32)


def _only_of(
    call: Call, is_taken_S: jax.Array, new_TKGH: jax.Array, other_TKGH: jax.Array | float
) -> jax.Array:
    """What is new for the tokens of these rows, and the other for all other tokens."""
    is_taken_T = call.rows.is_token_T & take(is_taken_S, call.rows.row_T)
    return jnp.where(is_taken_T[:, None, None, None], new_TKGH, other_TKGH)


def _sinks(call: Call) -> jax.Array:
    """Those of the call, or such as weigh nothing."""
    if call.sinks_KG is not None:
        return call.sinks_KG
    return jnp.full(call.q_TKGH.shape[1:3], NO_TOP, jnp.float32)
