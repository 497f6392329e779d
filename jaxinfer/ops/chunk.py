"""Attention of rows to keys and values that are made block by block, for every head.

Each block of a row's keys is made once and seen by all tiles of the row's new tokens, whose sums
grow with every block, as in FlashAttention (arXiv 2205.14135). Tiles and blocks begin where the row
does, so that its numbers do not depend on its neighbours.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxinfer.ops.heads import per_head

TILE = 128
"""Queries of a tile: with a block of keys, one matrix of logits a head."""

_NO_TOP = -1e30


def attend_in_chunk(
    q_NTH: jax.Array,
    block_of: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
    begins_S: jax.Array,
    q_lens_S: jax.Array,
    kv_lens_S: jax.Array,
    *,
    scale: float,
) -> jax.Array:
    """``[T, N, v]`` in the dtype of the queries: causal attention within each row.

    Row s has the ``q_lens_S[s]`` tokens from ``begins_S[s]`` on, int32, in rising order, the last
    of its ``kv_lens_S[s]``; those of length 0 are idle. Tokens of no row come out as zero, whatever
    they hold, NaN too. ``block_of(row, first)``: keys ``[N, c, H]`` and values ``[N, c, v]`` of a
    row from position ``first`` on, a multiple of c; beyond the row's last they must be finite.
    """
    num_heads, num_tokens, _ = q_NTH.shape
    tile = min(TILE, num_tokens)
    q_NTH = jnp.pad(q_NTH, ((0, 0), (0, tile), (0, 0)))
    zero = jnp.zeros((), jnp.int32)
    _, value = jax.eval_shape(block_of, zero, zero)
    _, block, value_dim = value.shape
    num_blocks_S = _divide_up(jnp.where(q_lens_S > 0, kv_lens_S, 0), block)
    ends_S = jnp.cumsum(num_blocks_S, dtype=jnp.int32)
    lane_t, lane_c = jnp.arange(tile, dtype=jnp.int32), jnp.arange(block, dtype=jnp.int32)

    def attend_block(index: jax.Array, state: tuple) -> tuple:
        row = (ends_S <= index).sum(dtype=jnp.int32)
        q_len, past = q_lens_S[row], kv_lens_S[row] - q_lens_S[row]
        first = (index - (ends_S - num_blocks_S)[row]) * block
        k_NcH, v_Ncv = block_of(row, first)

        def attend_tile(nth: jax.Array, state: tuple) -> tuple:
            lane = nth * tile + lane_t
            # Lanes beyond the row's last token are the next row's: their sums stay as they are.
            sees_tc = first + lane_c[None, :] <= past + lane[:, None]
            sees_tc &= (lane < q_len)[:, None]
            token = begins_S[row] + nth * tile
            q_NtH, top_Nt, total_Nt, sum_Ntv = (_tile_of(x, token, tile) for x in (q_NTH, *state))
            logits_Ntc = per_head("NtH,NcH->Ntc", q_NtH, k_NcH) * jnp.float32(scale)
            logits_Ntc = jnp.where(sees_tc[None], logits_Ntc, -jnp.inf)
            new_top_Nt = jnp.maximum(top_Nt, logits_Ntc.max(axis=-1))
            weights_Ntc = jnp.exp(logits_Ntc - new_top_Nt[..., None])
            decay_Nt = jnp.exp(top_Nt - new_top_Nt)
            added_Ntv = per_head("Ntc,Ncv->Ntv", weights_Ntc.astype(v_Ncv.dtype), v_Ncv)
            total_Nt = total_Nt * decay_Nt + weights_Ntc.sum(axis=-1)
            new = new_top_Nt, total_Nt, sum_Ntv * decay_Nt[..., None] + added_Ntv
            return tuple(
                lax.dynamic_update_slice_in_dim(x, x_Nt, token, axis=1)
                for x, x_Nt in zip(state, new, strict=True)
            )

        first_tile = lax.div(jnp.maximum(first - past, 0), jnp.int32(tile))
        return lax.fori_loop(first_tile, _divide_up(q_len, tile), attend_tile, state)

    top_NT = jnp.full((num_heads, num_tokens + tile), _NO_TOP, jnp.float32)
    nothing = (top_NT, jnp.zeros_like(top_NT), jnp.zeros((*top_NT.shape, value_dim)))
    _, total_NT, sum_NTv = lax.fori_loop(0, ends_S[-1], attend_block, nothing)
    token_T1 = jnp.arange(num_tokens, dtype=jnp.int32)[:, None]
    is_inside_TS = (token_T1 >= begins_S[None, :]) & (token_T1 < (begins_S + q_lens_S)[None, :])
    is_token_1T1 = is_inside_TS.any(axis=1)[None, :, None]
    total_NT1, sum_NTv = total_NT[:, :num_tokens, None], sum_NTv[:, :num_tokens]
    out_NTv = jnp.where(is_token_1T1, sum_NTv / jnp.where(is_token_1T1, total_NT1, 1.0), 0.0)
    return out_NTv.swapaxes(0, 1).astype(q_NTH.dtype)


def _tile_of(x_NT: jax.Array, token: jax.Array, tile: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(x_NT, token, tile, axis=1)


def _divide_up(x: jax.Array, y: int) -> jax.Array:
    """``x / y`` rounded up, for ``x >= 0``."""
    return lax.div(x + jnp.int32(y - 1), jnp.int32(y))
