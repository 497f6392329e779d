"""The meaning of latent attention: one token at a time, its whole row gathered, one softmax.

Slow and obvious. Everything is computed in float32. Positions that a token must not see are
replaced before they are used, not multiplied by zero: unwritten memory may hold NaN.
"""

import jax
import jax.numpy as jnp

from pallas_kernels.latent_attention.pages import (
    LatentPages,
    gather_latent_pages,
    stored_tokens,
    write_tokens,
)
from pallas_kernels.paging.options import Options
from pallas_kernels.paging.rows import describe_rows, token_pages


def latent_attention(
    q_latent_TNR: jax.Array,
    q_rope_TNr: jax.Array,
    latent_TR: jax.Array | None,
    rope_Tr: jax.Array | None,
    latent_pages: LatentPages,
    kv_lens_S: jax.Array,
    page_table_SM: jax.Array,
    cu_q_lens_S1: jax.Array,
    distribution_3: jax.Array,
    options: Options,
) -> tuple[jax.Array, LatentPages]:
    page_size = latent_pages.page_size
    rows = describe_rows(
        q_latent_TNR.shape[0],
        latent_pages.num_pages,
        page_size,
        kv_lens_S,
        page_table_SM,
        cu_q_lens_S1,
        distribution_3,
    )
    written = latent_pages
    if latent_TR is not None and rope_Tr is not None:
        bits_TW = stored_tokens(latent_TR, rope_Tr, latent_pages.dtype)
        written = write_tokens(latent_pages, bits_TW, *token_pages(rows, page_size))

    def attend_one_token(token: tuple[jax.Array, ...]) -> jax.Array:
        q_latent_NR, q_rope_Nr, row, position, is_token = token
        page_M = rows.page_table_SM[row]
        latent_LR, rope_Lr = (
            x_Mpw.astype(jnp.float32).reshape(page_M.size * page_size, -1)
            for x_Mpw in gather_latent_pages(written, page_M)
        )
        position_L = jnp.arange(page_M.size * page_size, dtype=jnp.int32)
        sees_L = (position_L < rows.kv_lens_S[row]) & jnp.repeat(page_M > 0, page_size)
        if options.causal:
            sees_L &= position_L <= position

        logits_LN = jnp.einsum("NR,LR->LN", q_latent_NR.astype(jnp.float32), latent_LR)
        logits_LN += jnp.einsum("Nr,Lr->LN", q_rope_Nr.astype(jnp.float32), rope_Lr)
        logits_LN = jnp.where(sees_L[:, None], logits_LN * jnp.float32(options.scale), -jnp.inf)
        weights_LN = jax.nn.softmax(logits_LN, axis=0)
        values_LR = jnp.where(sees_L[:, None], latent_LR, 0.0)
        out_NR = jnp.einsum("LN,LR->NR", weights_LN, values_LR)
        return jnp.where(is_token & sees_L.any(), out_NR, 0.0)

    tokens = (q_latent_TNR, q_rope_TNr, rows.row_T, rows.position_T, rows.is_token_T)
    with jax.default_matmul_precision("highest"):
        out_TNR = jax.lax.map(attend_one_token, tokens)
    return out_TNR.astype(q_latent_TNR.dtype), written if options.update_kv_cache else latent_pages
