"""Paged latents for the TPU kernel: a position is one row of whole registers.

A page lies as ``[page size, lanes]``: the latent, then its rotary part, then nothing up to the next
multiple of 128 lanes (512 + 64: 640). One copy brings a page whole; its first lanes are the values,
all its lanes are the keys, so that a latent is fetched once for both.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.paging.pool import from_storage, to_storage
from pallas_kernels.paging.tpu_registers import LANES, align, rows_of

DTYPES = ("float32", "bfloat16", "float8_e4m3fn", "float8_e5m2")
"""What a page can hold. The compiler knows no float16."""

WIDEST = 2048
"""Lanes of a position: wider ones leave no room in VMEM for the queries of 128 heads."""

PAGE_BYTES = 8 * 2**20
"""The largest page: two of them are in VMEM, and must leave room for the rest."""

MOST_HEADS = 256
"""Query heads of a device: all of a token's are attended together."""


def refuse_pages(
    page_size: int, latent_rank: int, rope_dim: int, dtype: jax.typing.DTypeLike
) -> str | None:
    """Why pages of this kind cannot be served, or None."""
    name = jnp.dtype(dtype).name
    if name not in DTYPES:
        return f"pages of {name} are not one of {', '.join(DTYPES)}"
    least = rows_of(dtype)
    if page_size < least or page_size & (page_size - 1):
        return f"page_size = {page_size} is not a power of two from {least} on, for {name}"
    width = align(latent_rank + rope_dim, LANES)
    if width > WIDEST:
        return f"latent_rank + rope_dim = {latent_rank + rope_dim} is above {WIDEST}"
    page_bytes = page_size * width * jnp.dtype(dtype).itemsize
    if page_bytes > PAGE_BYTES:
        return f"a page of {page_bytes} bytes is above {PAGE_BYTES}: take a smaller page_size"
    return None


def refuse_call(num_heads: int | None) -> str | None:
    """Why the kernel cannot run a call with so many query heads, or None."""
    if num_heads is not None and num_heads > MOST_HEADS:
        return f"{num_heads} query heads on a device are more than {MOST_HEADS}"
    return None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TpuLatentPages:
    """The latents of one layer, in pages of ``page_size`` positions. Nobody owns page 0."""

    latents_PpW: jax.Array
    latent_rank: int = field(metadata={"static": True})
    rope_dim: int = field(metadata={"static": True})

    @property
    def num_pages(self) -> int:
        return self.latents_PpW.shape[0]

    @property
    def page_size(self) -> int:
        return self.latents_PpW.shape[1]

    @property
    def num_kv_heads(self) -> int:
        return 1

    @property
    def head_dim(self) -> int:
        return self.latent_rank + self.rope_dim

    @property
    def dtype(self) -> np.dtype:
        return self.latents_PpW.dtype

    def read(self, ids_n: jax.Array, keep_n: jax.Array) -> tuple[jax.Array, jax.Array]:
        nothing = jnp.zeros((), self.dtype)
        x_npW = jnp.where(keep_n[:, None, None], self.latents_PpW[ids_n], nothing)
        return x_npW[..., : self.latent_rank], x_npW[..., self.latent_rank : self.head_dim]

    def write(
        self, ids_n: jax.Array, latent_npR: jax.Array, rope_npr: jax.Array
    ) -> "TpuLatentPages":
        x_npW = join(latent_npR, rope_npr)
        return self.replace(self.latents_PpW.at[ids_n].set(x_npW, mode="drop"))

    def element(self, value: float) -> jax.Array:
        return from_storage(to_storage(jnp.float32(value), self.dtype), self.dtype)

    def replace(self, latents_PpW: jax.Array) -> "TpuLatentPages":
        return TpuLatentPages(
            latents_PpW=latents_PpW, latent_rank=self.latent_rank, rope_dim=self.rope_dim
        )


def allocate_tpu_latent_pages(
    num_pages: int, page_size: int, latent_rank: int, rope_dim: int, dtype: jax.typing.DTypeLike
) -> TpuLatentPages:
    """A pool filled with zeros."""
    shape = (num_pages, page_size, align(latent_rank + rope_dim, LANES))
    return TpuLatentPages(
        latents_PpW=jnp.zeros(shape, dtype), latent_rank=latent_rank, rope_dim=rope_dim
    )


def join(latent: jax.Array, rope: jax.Array) -> jax.Array:
    """Latents ``[..., R]`` and rotary parts ``[..., r]`` as the lanes of their positions."""
    width = latent.shape[-1] + rope.shape[-1]
    nothing = jnp.zeros((*latent.shape[:-1], align(width, LANES) - width), latent.dtype)
    return jnp.concatenate([latent, rope, nothing], axis=-1)
