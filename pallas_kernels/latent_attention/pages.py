"""Paged latents: one layer's pool, an opaque pytree for everyone outside this folder.

A position is one row of ``R + r`` numbers, its latent followed by its rotary part. 16-bit floats
are stored as uint16 and fp8 as uint8, for the reason given in ``paging/pool.py``. To what is
shared, a pool of latents is a pool with one kv head, whose key is the whole row.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from pallas_kernels.paging import pool
from pallas_kernels.paging.pool import copy_pages, fill_pages

STORAGE = {name: storage for name, storage in pool.STORAGE.items() if name != "int8"}
"""The dtypes a page can hold, and the dtype of the array that holds them. Int8 would need scales,
which the contract does not have."""


class Pages(pool.Pages, Protocol):
    """What the companions ask of a pool, whatever its layout: a pytree whose leaves begin with P.

    ``read`` and ``write`` take latents ``[n, page_size, R]`` and rotary parts ``[n, page_size, r]``
    where those of ``pool.Pages`` take keys and values.
    """

    @property
    def latent_rank(self) -> int: ...

    @property
    def rope_dim(self) -> int: ...


AnyPages = TypeVar("AnyPages", bound=Pages)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class LatentPages:
    """The latents of one layer, in pages of ``page_size`` positions. Nobody owns page 0."""

    latents_PpW: jax.Array
    latent_rank: int = field(metadata={"static": True})
    dtype_name: str = field(metadata={"static": True})

    @property
    def num_pages(self) -> int:
        return self.latents_PpW.shape[0]

    @property
    def page_size(self) -> int:
        return self.latents_PpW.shape[1]

    @property
    def rope_dim(self) -> int:
        return self.latents_PpW.shape[2] - self.latent_rank

    @property
    def num_kv_heads(self) -> int:
        return 1

    @property
    def head_dim(self) -> int:
        return self.latents_PpW.shape[2]

    @property
    def dtype(self) -> np.dtype:
        """The dtype of a stored latent (not of the array that holds it)."""
        return jnp.dtype(self.dtype_name)

    def read(self, ids_n: jax.Array, keep_n: jax.Array) -> tuple[jax.Array, jax.Array]:
        nothing = jnp.zeros((), self.latents_PpW.dtype)
        bits_npW = jnp.where(keep_n[:, None, None], self.latents_PpW[ids_n], nothing)
        x_npW = pool.from_storage(bits_npW, self.dtype)
        return x_npW[..., : self.latent_rank], x_npW[..., self.latent_rank :]

    def write(self, ids_n: jax.Array, latent_npR: jax.Array, rope_npr: jax.Array) -> "LatentPages":
        x_npW = jnp.concatenate([latent_npR, rope_npr], axis=-1)
        bits_npW = jax.lax.bitcast_convert_type(x_npW, self.latents_PpW.dtype)
        return self.replace(self.latents_PpW.at[ids_n].set(bits_npW, mode="drop"))

    def element(self, value: float) -> jax.Array:
        return pool.to_storage(jnp.float32(value), self.dtype)

    def replace(self, latents_PpW: jax.Array) -> "LatentPages":
        return LatentPages(
            latents_PpW=latents_PpW, latent_rank=self.latent_rank, dtype_name=self.dtype_name
        )


def check_pool(
    num_pages: int, page_size: int, latent_rank: int, rope_dim: int, dtype: jax.typing.DTypeLike
) -> None:
    """Raises ``ValueError`` for a size below 1 or a dtype not in ``STORAGE``."""
    name = jnp.dtype(dtype).name
    if name not in STORAGE:
        raise ValueError(f"dtype = {name} is not one of {', '.join(STORAGE)}")
    for what, size in (
        ("num_pages", num_pages),
        ("page_size", page_size),
        ("latent_rank", latent_rank),
        ("rope_dim", rope_dim),
    ):
        if size < 1:
            raise ValueError(f"{what} = {size} is not 1 or more")


def allocate_latent_pages(
    num_pages: int, page_size: int, latent_rank: int, rope_dim: int, dtype: jax.typing.DTypeLike
) -> LatentPages:
    """A pool filled with zeros."""
    name = jnp.dtype(dtype).name
    shape = (num_pages, page_size, latent_rank + rope_dim)
    return LatentPages(
        latents_PpW=jnp.zeros(shape, STORAGE[name]), latent_rank=latent_rank, dtype_name=name
    )


def latent_pages_spec(axis: str | tuple[str, ...] | None = None) -> PartitionSpec:
    """The PartitionSpec of every leaf of a pool where query heads are split over mesh ``axis``.

    All heads share the latents, so each device holds the whole pool, whatever the axis.
    """
    del axis
    return PartitionSpec()


def write_tokens(
    pages: LatentPages, bits_TW: jax.Array, page_T: jax.Array, offset_T: jax.Array
) -> LatentPages:
    """Writes the stored bits of one position a token; pages not in 1..P-1 are dropped."""
    page_T = pool.dropped_unless(pool.is_owned(page_T, pages), page_T, pages)
    options: dict[str, Any] = {"mode": "drop", "wrap_negative_indices": False}
    return pages.replace(pages.latents_PpW.at[page_T, offset_T].set(bits_TW, **options))


def stored_tokens(latent_TR: jax.Array, rope_Tr: jax.Array, dtype: np.dtype) -> jax.Array:
    """New latents and rotary parts as the bits a page would hold, side by side."""
    return jnp.concatenate(
        [pool.stored_tokens(latent_TR, dtype, None), pool.stored_tokens(rope_Tr, dtype, None)],
        axis=-1,
    )


copy_latent_pages = copy_pages
fill_latent_pages = fill_pages


def gather_latent_pages(pages: Pages, ids_n: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Reads pages ``ids_n`` as latents ``[n, page_size, R]`` and rotary parts ``[n, page_size, r]``
    of the pool's dtype.

    An id that is not in 1..P-1 reads as zeros.
    """
    return pool.gather_pages(pages, ids_n)


def scatter_latent_pages(
    pages: AnyPages, ids_n: jax.Array, latent_npR: jax.Array, rope_npr: jax.Array
) -> AnyPages:
    """Writes whole pages, as ``gather_latent_pages`` returned them, to ``ids_n``; the inverse of
    it.

    An id that is not in 1..P-1 is ignored. Raises ``ValueError`` for arrays of another shape, or
    of another dtype than the pool's.
    """
    parts = {
        "latents": (latent_npR, (pages.latent_rank,)),
        "rotary parts": (rope_npr, (pages.rope_dim,)),
    }
    return pool.scatter_pages(pages, ids_n, **parts)
