"""The meaning against plain NumPy, and every implementation against the meaning."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import gather_latent_pages


def plain_attention(q_LNW, latents_LW, latent_rank, first_query, *, causal=True):
    """One row in float64, straight from the formula."""
    length = len(latents_LW)
    logits_tNL = 0.25 * np.einsum("tNW,LW->tNL", q_LNW, latents_LW)
    if causal:
        sees_tL = np.arange(length)[None, :] <= np.arange(first_query, length)[:, None]
        logits_tNL = np.where(sees_tL[:, None, :], logits_tNL, -np.inf)
    weights_tNL = np.exp(logits_tNL)
    weights_tNL /= weights_tNL.sum(axis=-1, keepdims=True)
    return np.einsum("tNL,LR->tNR", weights_tNL, latents_LW[:, :latent_rank])


@pytest.mark.parametrize("causal", [True, False])
def test_the_reference_equals_the_formula(causal, batch_of, attend, assert_close):
    batch = batch_of([(1, 0), (9, 30), (1, 17)])
    out, pages = attend("reference", batch, causal=causal)
    q = np.concatenate([batch.q_latent_TNR, batch.q_rope_TNr], axis=-1, dtype=np.float64)
    for row, tokens, length in ((1, slice(1, 10), 30), (2, slice(10, 11), 17)):
        latents = np.concatenate(
            gather_latent_pages(pages, batch.page_table_SM[row]), axis=-1, dtype=np.float64
        )
        latents = latents.reshape(-1, latents.shape[-1])[:length]
        first = length - (tokens.stop - tokens.start)
        expected = plain_attention(q[tokens], latents, 16, first, causal=causal)
        assert_close(out[tokens], expected.astype(np.float32))
    assert not out[0].any()
    assert not out[11:].any()


def test_queries_of_zeros_average_the_latents_and_no_rotary_part(batch_of, attend, assert_close):
    batch = batch_of([(4, 4)])
    silent = batch.where(
        q_latent_TNR=jnp.zeros_like(batch.q_latent_TNR), q_rope_TNr=jnp.zeros_like(batch.q_rope_TNr)
    )
    out, _ = attend("reference", silent, causal=False)
    average = np.asarray(batch.latent_TR[:4]).mean(axis=0)
    assert_close(out[:4], np.broadcast_to(average, (4, 3, 16)))
