"""Pages as a Hopper GPU wants them: latents ``[pages, page size, R]``, rotary parts beside them.

A position's latent is key and value at once, its rotary part is key only. The copy engine (TMA)
brings either to shared memory in the order that the tensor cores read. Every dtype is stored as
itself: XLA:GPU scatters into a donated buffer in place whatever it holds.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.paging.pool import dropped_unless, from_storage, is_owned, to_storage


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class GpuLatentPages:
    """The latents of one layer, in pages of ``page_size`` positions. Nobody owns page 0."""

    latent_PpR: jax.Array
    rope_Ppr: jax.Array

    @property
    def num_pages(self) -> int:
        return self.latent_PpR.shape[0]

    @property
    def page_size(self) -> int:
        return self.latent_PpR.shape[1]

    @property
    def latent_rank(self) -> int:
        return self.latent_PpR.shape[2]

    @property
    def rope_dim(self) -> int:
        return self.rope_Ppr.shape[2]

    @property
    def num_kv_heads(self) -> int:
        return 1

    @property
    def head_dim(self) -> int:
        return self.latent_rank + self.rope_dim

    @property
    def dtype(self) -> np.dtype:
        return self.latent_PpR.dtype

    def read(self, ids_n: jax.Array, keep_n: jax.Array) -> tuple[jax.Array, jax.Array]:
        nothing = jnp.zeros((), self.dtype)
        latent_npR, rope_npr = (
            jnp.where(keep_n[:, None, None], pool[ids_n], nothing)
            for pool in (self.latent_PpR, self.rope_Ppr)
        )
        return latent_npR, rope_npr

    def write(
        self, ids_n: jax.Array, latent_npR: jax.Array, rope_npr: jax.Array
    ) -> "GpuLatentPages":
        return GpuLatentPages(
            latent_PpR=self.latent_PpR.at[ids_n].set(latent_npR, mode="drop"),
            rope_Ppr=self.rope_Ppr.at[ids_n].set(rope_npr, mode="drop"),
        )

    def element(self, value: float) -> jax.Array:
        return from_storage(to_storage(jnp.float32(value), self.dtype), self.dtype)


def allocate_gpu_latent_pages(
    num_pages: int, page_size: int, latent_rank: int, rope_dim: int, dtype: jax.typing.DTypeLike
) -> GpuLatentPages:
    """A pool filled with zeros."""
    return GpuLatentPages(
        latent_PpR=jnp.zeros((num_pages, page_size, latent_rank), dtype),
        rope_Ppr=jnp.zeros((num_pages, page_size, rope_dim), dtype),
    )


def write_tokens(
    pages: GpuLatentPages,
    latent_TR: jax.Array,
    rope_Tr: jax.Array,
    page_T: jax.Array,
    offset_T: jax.Array,
) -> GpuLatentPages:
    """Writes one latent and rotary part a token, rounded to the dtype of the pages; pages not in
    1..P-1 are dropped."""
    page_T = dropped_unless(is_owned(page_T, pages), page_T, pages)
    options: dict[str, Any] = {"mode": "drop", "wrap_negative_indices": False}
    latent_TR, rope_Tr = latent_TR.astype(pages.dtype), rope_Tr.astype(pages.dtype)
    return GpuLatentPages(
        latent_PpR=pages.latent_PpR.at[page_T, offset_T].set(latent_TR, **options),
        rope_Ppr=pages.rope_Ppr.at[page_T, offset_T].set(rope_Tr, **options),
    )
