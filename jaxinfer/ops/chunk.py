"""Attention of rows to nothing but their own new tokens: no pages, keys and values of every head.

Each row is cut into tiles of queries, each of which walks over the row's keys as far as it sees, as
in FlashAttention-2 (arXiv 2307.08691). Tiles and blocks begin where the row does, so that its
numbers do not depend on its neighbours.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jaxinfer.ops.heads import per_head

TILE = 128
"""Queries of a tile, and keys of a step: one matrix of logits a head."""

_NO_TOP = -1e30


def attend_in_chunk(
    q_NTH: jax.Array,
    k_NTH: jax.Array,
    v_NTv: jax.Array,
    begins_S: jax.Array,
    lens_S: jax.Array,
    *,
    scale: float,
) -> jax.Array:
    """``[T, N, v]`` in the dtype of the queries: causal attention within each row.

    Row s has the ``lens_S[s]`` tokens from ``begins_S[s]`` on, int32, in rising order; those of
    length 0 are idle. Tokens of no row come out as zero, whatever they hold, NaN too.
    """
    num_heads, num_tokens, _ = q_NTH.shape
    tile = min(TILE, num_tokens)
    q_NTH, k_NTH, v_NTv = (jnp.pad(x, ((0, 0), (0, tile), (0, 0))) for x in (q_NTH, k_NTH, v_NTv))
    num_tiles_S = lax.div(lens_S + jnp.int32(tile - 1), jnp.int32(tile))
    ends_S = jnp.cumsum(num_tiles_S, dtype=jnp.int32)
    lane_t = jnp.arange(tile, dtype=jnp.int32)

    def attend_tile(index: jax.Array, out_TNv: jax.Array) -> jax.Array:
        row = (ends_S <= index).sum(dtype=jnp.int32)
        begin, length = begins_S[row], lens_S[row]
        nth = index - (ends_S - num_tiles_S)[row]
        token = begin + nth * tile
        q_NtH = _tile_of(q_NTH, token, tile)

        def attend_block(block: jax.Array, state: tuple) -> tuple:
            top_Nt, total_Nt, sum_Ntv = state
            first = block * tile
            k_NcH, v_Ncv = (_tile_of(x, begin + first, tile) for x in (k_NTH, v_NTv))
            sees_tc = first + lane_t[None, :] <= nth * tile + lane_t[:, None]
            logits_Ntc = per_head("NtH,NcH->Ntc", q_NtH, k_NcH) * jnp.float32(scale)
            logits_Ntc = jnp.where(sees_tc[None], logits_Ntc, -jnp.inf)
            new_top_Nt = jnp.maximum(top_Nt, logits_Ntc.max(axis=-1))
            weights_Ntc = jnp.exp(logits_Ntc - new_top_Nt[..., None])
            decay_Nt = jnp.exp(top_Nt - new_top_Nt)
            # What belongs to the next row may be NaN, which a weight of 0 does not silence.
            is_held_c = first + lane_t < length
            v_Ncv = jnp.where(is_held_c[None, :, None], v_Ncv, jnp.zeros((), v_Ncv.dtype))
            added_Ntv = per_head("Ntc,Ncv->Ntv", weights_Ntc.astype(v_Ncv.dtype), v_Ncv)
            total_Nt = total_Nt * decay_Nt + weights_Ntc.sum(axis=-1)
            return new_top_Nt, total_Nt, sum_Ntv * decay_Nt[..., None] + added_Ntv

        top_Nt = jnp.full((num_heads, tile), _NO_TOP, jnp.float32)
        nothing = (top_Nt, jnp.zeros_like(top_Nt), jnp.zeros((*top_Nt.shape, v_NTv.shape[2])))
        _, total_Nt, sum_Ntv = lax.fori_loop(0, nth + 1, attend_block, nothing)
        new_tNv = (sum_Ntv / total_Nt[..., None]).swapaxes(0, 1).astype(out_TNv.dtype)
        # Lanes beyond the row's last token fall on the next row, whose tiles come later.
        return lax.dynamic_update_slice_in_dim(out_TNv, new_tNv, token, axis=0)

    shape = (num_tokens + tile, num_heads, v_NTv.shape[2])
    out_TNv = lax.fori_loop(0, ends_S[-1], attend_tile, jnp.zeros(shape, q_NTH.dtype))[:num_tokens]
    token_T1 = jnp.arange(num_tokens, dtype=jnp.int32)[:, None]
    is_inside_TS = (token_T1 >= begins_S[None, :]) & (token_T1 < (begins_S + lens_S)[None, :])
    is_token_T = is_inside_TS.any(axis=1)
    return jnp.where(is_token_T[:, None, None], out_TNv, jnp.zeros((), out_TNv.dtype))


def _tile_of(x_NTH: jax.Array, token: jax.Array, tile: int) -> jax.Array:
    return lax.dynamic_slice_in_dim(x_NTH, token, tile, axis=1)
