"""New latents into their pages, for those who attend to them elsewhere."""

import jax
import jax.numpy as jnp

from pallas_kernels.latent_attention import gpu_pages, pages
from pallas_kernels.latent_attention.arguments import check_write_arguments
from pallas_kernels.latent_attention.choice import LatentPages
from pallas_kernels.latent_attention.gpu_pages import GpuLatentPages
from pallas_kernels.latent_attention.tpu_pages import TpuLatentPages
from pallas_kernels.paging.arguments import check_row_values
from pallas_kernels.paging.options import Options
from pallas_kernels.paging.rows import Rows, describe_rows, token_pages


def write_latents(
    latent_TR: jax.Array,
    rope_Tr: jax.Array,
    latent_pages: LatentPages,
    kv_lens_S: jax.Array,
    page_table_SM: jax.Array,
    cu_q_lens_S1: jax.Array,
    distribution_3: jax.Array,
    *,
    interpret: bool = False,
) -> LatentPages:
    """The pages with the new latents in them: the write of ``latent_attention`` alone.

    Arguments and errors as there; donate ``latent_pages``, the write is in place.
    """
    check_write_arguments(
        latent_TR, rope_Tr, latent_pages, kv_lens_S, page_table_SM, cu_q_lens_S1, distribution_3
    )
    rows = (kv_lens_S, page_table_SM, cu_q_lens_S1, distribution_3)
    check_row_values(latent_TR.shape[0], latent_pages, *rows)
    with jax.named_scope("write_latents"):
        if isinstance(latent_pages, TpuLatentPages):
            # The kernel writes whole registers; a scatter would go to another unit. One head of
            # queries is the least that it takes.
            from pallas_kernels.latent_attention import tpu

            one_TNR = jnp.zeros((latent_TR.shape[0], 1, latent_TR.shape[1]), latent_TR.dtype)
            one_TNr = jnp.zeros((rope_Tr.shape[0], 1, rope_Tr.shape[1]), latent_TR.dtype)
            options = Options(scale=1.0)
            arguments = (one_TNR, one_TNr, latent_TR, rope_Tr, latent_pages, *rows, options)
            return tpu.latent_attention(*arguments, interpret=interpret)[1]
        described = describe_rows(
            latent_TR.shape[0], latent_pages.num_pages, latent_pages.page_size, *rows
        )
        if isinstance(latent_pages, GpuLatentPages):
            places = _places(described, latent_pages)
            return gpu_pages.write_tokens(latent_pages, latent_TR, rope_Tr, *places)
        bits_TW = pages.stored_tokens(latent_TR, rope_Tr, latent_pages.dtype)
        return pages.write_tokens(latent_pages, bits_TW, *_places(described, latent_pages))


def _places(rows: Rows, latent_pages: LatentPages) -> tuple[jax.Array, jax.Array]:
    return token_pages(rows, latent_pages.page_size)
