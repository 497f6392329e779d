"""New latents into their pages, for those who attend to them elsewhere."""

import jax

from pallas_kernels import dispatch
from pallas_kernels.latent_attention import gpu_pages, pages
from pallas_kernels.latent_attention.arguments import check_write_arguments
from pallas_kernels.latent_attention.choice import LatentPages
from pallas_kernels.latent_attention.gpu_pages import GpuLatentPages
from pallas_kernels.latent_attention.tpu_pages import TpuLatentPages
from pallas_kernels.paging.arguments import check_row_values
from pallas_kernels.paging.rows import describe_rows, token_pages


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

    Arguments and errors as there; donate ``latent_pages``, the write is in place. ``interpret``
    runs the kernel that writes to pages of a TPU in its interpreter.
    """
    check_write_arguments(
        latent_TR, rope_Tr, latent_pages, kv_lens_S, page_table_SM, cu_q_lens_S1, distribution_3
    )
    rows = (kv_lens_S, page_table_SM, cu_q_lens_S1, distribution_3)
    check_row_values(latent_TR.shape[0], latent_pages, *rows)
    if isinstance(latent_pages, TpuLatentPages):  # Plain XLA writes to all others.
        arrays = (latent_TR, rope_Tr, latent_pages, *rows)
        dispatch.refuse_to_run("write_latents", "tpu", interpret, arrays)
    with jax.named_scope("write_latents"):
        described = describe_rows(
            latent_TR.shape[0], latent_pages.num_pages, latent_pages.page_size, *rows
        )
        if isinstance(latent_pages, TpuLatentPages):
            from pallas_kernels.latent_attention import tpu_write

            return tpu_write.write_tokens(latent_pages, latent_TR, rope_Tr, described, interpret)
        places = token_pages(described, latent_pages.page_size)
        if isinstance(latent_pages, GpuLatentPages):
            return gpu_pages.write_tokens(latent_pages, latent_TR, rope_Tr, *places)
        bits_TW = pages.stored_tokens(latent_TR, rope_Tr, latent_pages.dtype)
        return pages.write_tokens(latent_pages, bits_TW, *places)
