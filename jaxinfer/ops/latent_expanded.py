"""A decode step of latent attention as DeepSeek-V2 defines it, before absorption: slow and obvious.

Every step makes keys and values of every head again, of all latents that a row has. What
``latent.attend_latents`` does is compared with it, in tests and in ``jaxinfer.bench.latent``.
"""

import jax
import jax.numpy as jnp

from jaxinfer.ops.heads import per_head
from jaxinfer.ops.latent import Heads
from pallas_kernels import LatentPages, gather_latent_pages


def attend_expanded(
    heads: Heads,
    pages: LatentPages,
    page_table_SM: jax.Array,
    kv_lens_S: jax.Array,
    *,
    scale: float,
) -> jax.Array:
    """``[S, N, v]`` for one token a row, whose latent is in its page already.

    Rows as in ``attend_latents``; one of length 0 comes out as zero.
    """
    dtype = heads.q_nope_TNh.dtype
    num_slots = page_table_SM.shape[0]
    latent_nR, rope_nr = gather_latent_pages(pages, page_table_SM.reshape(-1))
    latent_SLR = latent_nR.astype(dtype).reshape(num_slots, -1, pages.latent_rank)
    rope_SLr = rope_nr.astype(dtype).reshape(num_slots, -1, pages.rope_dim)
    is_held_SL = jnp.arange(latent_SLR.shape[1], dtype=jnp.int32)[None, :] < kv_lens_S[:, None]
    # Memory that nobody wrote may be NaN.
    latent_SLR = jnp.where(is_held_SL[:, :, None], latent_SLR, jnp.zeros((), dtype))

    k_NSLh = per_head("SLR,NhR->NSLh", latent_SLR, heads.k_up_NhR).astype(dtype)
    v_NSLv = per_head("SLR,NRv->NSLv", latent_SLR, heads.v_up_NRv).astype(dtype)
    logits_NSL = per_head("SNh,NSLh->NSL", heads.q_nope_TNh, k_NSLh)
    logits_NSL += per_head("SNr,SLr->NSL", heads.q_rope_TNr, rope_SLr)
    logits_NSL = jnp.where(is_held_SL[None], logits_NSL * jnp.float32(scale), -jnp.inf)
    has_any_S11 = (kv_lens_S > 0)[:, None, None]
    weights_NSL = jnp.where(is_held_SL[None], jax.nn.softmax(logits_NSL, axis=-1), 0.0)
    out_SNv = per_head("NSL,NSLv->SNv", weights_NSL.astype(dtype), v_NSLv)
    return jnp.where(has_any_S11, out_SNv, 0.0).astype(dtype)
