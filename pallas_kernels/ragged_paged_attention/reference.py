"""The meaning of ragged paged attention: one token at a time, its whole row gathered, one softmax.

Slow and obvious. Everything is computed in float32. Positions that a token must not see are
replaced before they are used, not multiplied by zero: unwritten memory may hold NaN.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.paging.options import Options
from pallas_kernels.paging.pool import stored_tokens
from pallas_kernels.paging.rows import describe_rows, token_pages
from pallas_kernels.ragged_paged_attention.pages import (
    KVPages,
    gather_kv_pages,
    write_tokens,
)


def ragged_paged_attention(
    q_TNH: jax.Array,
    k_TKH: jax.Array | None,
    v_TKH: jax.Array | None,
    kv_pages: KVPages,
    kv_lens_S: jax.Array,
    page_table_SM: jax.Array,
    cu_q_lens_S1: jax.Array,
    distribution_3: jax.Array,
    sinks_N: jax.Array | None,
    k_scale_K: jax.Array | None,
    v_scale_K: jax.Array | None,
    options: Options,
) -> tuple[jax.Array, KVPages]:
    num_tokens, num_heads, _ = q_TNH.shape
    page_size = kv_pages.page_size
    rows = describe_rows(
        num_tokens,
        kv_pages.num_pages,
        page_size,
        kv_lens_S,
        page_table_SM,
        cu_q_lens_S1,
        distribution_3,
    )
    written = kv_pages
    if k_TKH is not None and v_TKH is not None:
        stored_k_TKH = stored_tokens(k_TKH, kv_pages.dtype, k_scale_K)
        stored_v_TKH = stored_tokens(v_TKH, kv_pages.dtype, v_scale_K)
        page_T, offset_T = token_pages(rows, page_size)
        written = write_tokens(kv_pages, stored_k_TKH, stored_v_TKH, page_T, offset_T)
    queries_per_kv_head = num_heads // kv_pages.num_kv_heads

    def read_row(page_M: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys_MpKH, values_MpKH = gather_kv_pages(written, page_M)
        return _values_of(keys_MpKH, k_scale_K), _values_of(values_MpKH, v_scale_K)

    def attend_one_token(token: tuple[jax.Array, ...]) -> jax.Array:
        q_NH, row, position, is_token = token
        page_M = rows.page_table_SM[row]
        keys_LKH, values_LKH = read_row(page_M)
        key_position_L = jnp.arange(page_M.size * page_size, dtype=jnp.int32)
        sees_L = (key_position_L < rows.kv_lens_S[row]) & jnp.repeat(page_M > 0, page_size)
        if options.causal:
            sees_L &= key_position_L <= position
        if options.sliding_window is not None:
            sees_L &= key_position_L > position - options.sliding_window
        keys_LNH = jnp.repeat(keys_LKH, queries_per_kv_head, axis=1)
        values_LNH = jnp.repeat(values_LKH, queries_per_kv_head, axis=1)

        logits_LN = jnp.einsum("NH,LNH->LN", q_NH.astype(jnp.float32), keys_LNH)
        logits_LN *= jnp.float32(options.scale)
        if options.logit_softcap is not None:
            cap = jnp.float32(options.logit_softcap)
            logits_LN = cap * jnp.tanh(logits_LN / cap)
        logits_LN = jnp.where(sees_L[:, None], logits_LN, -jnp.inf)
        values_LNH = jnp.where(sees_L[:, None, None], values_LNH, 0.0)
        out_NH = _softmax_average(logits_LN, values_LNH, sinks_N)
        return jnp.where(is_token & sees_L.any(), out_NH, 0.0)

    tokens = (q_TNH, rows.row_T, rows.position_T, rows.is_token_T)
    with jax.default_matmul_precision("highest"):
        out_TNH = jax.lax.map(attend_one_token, tokens)
    return out_TNH.astype(q_TNH.dtype), written if options.update_kv_cache else kv_pages


def _values_of(stored_MpKH: jax.Array, scale_K: jax.Array | None) -> jax.Array:
    """Stored pages as what they mean, float32 ``[M * p, K, H]``."""
    x_MpKH = stored_MpKH.astype(jnp.float32)
    if scale_K is not None:
        x_MpKH *= scale_K.astype(jnp.float32)[None, None, :, None]
    return x_MpKH.reshape(-1, *x_MpKH.shape[2:])


def _softmax_average(
    logits_LN: jax.Array, values_LNH: jax.Array, sinks_N: jax.Array | None
) -> jax.Array:
    """The softmax-weighted average of the values; a sink joins the denominator only."""
    top_N = logits_LN.max(axis=0)
    if sinks_N is not None:
        top_N = jnp.maximum(top_N, sinks_N.astype(jnp.float32))
    top_N = jnp.where(jnp.isfinite(top_N), top_N, 0.0)
    weights_LN = jnp.exp(logits_LN - top_N[None, :])
    total_N = weights_LN.sum(axis=0)
    if sinks_N is not None:
        total_N += jnp.exp(sinks_N.astype(jnp.float32) - top_N)
    return jnp.einsum("LN,LNH->NH", weights_LN, values_LNH) / total_N[:, None]
