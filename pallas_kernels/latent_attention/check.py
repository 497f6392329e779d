"""A step of one layer, at full size, against the reference in float32."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.latent_attention import (
    LatentPages,
    init_latent_pages,
    latent_attention,
    scatter_latent_pages,
)
from pallas_kernels.latent_attention.gpu_pages import GpuLatentPages
from pallas_kernels.latent_attention.specs import Spec
from pallas_kernels.paging import checked
from pallas_kernels.paging.pool import rounded_tokens
from pallas_kernels.tolerance import errors_of


def errors(
    spec: Spec,
    page_table_SM: np.ndarray,
    new: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
    before: LatentPages,
    out_TNR: jax.Array,
    after: LatentPages,
) -> dict[str, float]:
    """Of a call on ``new`` queries, latents and rotary parts, which made ``after`` of ``before``.
    See ``errors_of``; ``wrong_in_pages`` counts numbers."""
    q_latent_TNR, q_rope_TNr, *unrounded = new
    places, token_n = checked.places_of(spec, page_table_SM), checked.drawn_tokens(spec)
    stored = tuple(rounded_tokens(x, before.dtype, None) for x in unrounded)

    def attend(
        queries: tuple[jax.Array, ...], parts: tuple[jax.Array, jax.Array], rows: Any
    ) -> jax.Array:
        latent_MpR, rope_Mpr = parts
        num_pages, page_size, latent_rank = latent_MpR.shape
        sizes = (num_pages + 1, page_size, latent_rank, rope_Mpr.shape[2])
        pages = init_latent_pages(*sizes, before.dtype, implementation="reference")
        pages = scatter_latent_pages(pages, jnp.arange(1, num_pages + 1), latent_MpR, rope_Mpr)
        q_latent_1NR, q_rope_1Nr = queries
        out_1NR, _ = latent_attention(
            q_latent_1NR,
            q_rope_1Nr,
            None,
            None,
            pages,
            *rows,
            scale=spec.scale,
            implementation="reference",
        )
        return out_1NR

    queries = (q_latent_TNR, q_rope_TNr)
    expected_nNR = checked.attend_alone(attend, queries, after, places, token_n)
    # The kernel for GPUs multiplies in 16 bits, whatever the queries are.
    rounded_to = "bfloat16" if isinstance(after, GpuLatentPages) else q_latent_TNR.dtype.name
    return {
        **errors_of(out_TNR[token_n], expected_nNR, rounded_to),
        "wrong_in_pages": checked.count_wrong(before, after, stored, places),
        "checked_tokens": token_n.size,
    }
