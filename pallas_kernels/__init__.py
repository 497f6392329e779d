"""Kernels: arrays in, arrays out. One folder an operation; see README.md for the rules."""

from pallas_kernels.dispatch import NoImplementation
from pallas_kernels.grouped_matmul import grouped_matmul
from pallas_kernels.latent_attention import (
    LatentPages,
    copy_latent_pages,
    fill_latent_pages,
    gather_latent_pages,
    init_latent_pages,
    latent_attention,
    latent_pages_spec,
    scatter_latent_pages,
    write_latents,
)
from pallas_kernels.ragged_paged_attention import (
    KVPages,
    copy_kv_pages,
    fill_kv_pages,
    gather_kv_pages,
    init_kv_pages,
    kv_pages_spec,
    ragged_paged_attention,
    scatter_kv_pages,
)

__all__ = [
    "KVPages",
    "LatentPages",
    "NoImplementation",
    "copy_kv_pages",
    "copy_latent_pages",
    "fill_kv_pages",
    "fill_latent_pages",
    "gather_kv_pages",
    "gather_latent_pages",
    "grouped_matmul",
    "init_kv_pages",
    "init_latent_pages",
    "kv_pages_spec",
    "latent_attention",
    "latent_pages_spec",
    "ragged_paged_attention",
    "scatter_kv_pages",
    "scatter_latent_pages",
    "write_latents",
]
