"""Pages as a Hopper GPU wants them: ``[pages, 2 * kv heads, page size, head dim]``, the keys of a
kv head and then its values.

A page of one kv head is a run of memory, which the copy engine (TMA) brings to shared memory, and
the tensor cores read keys and values in this order. In one array, both are written by one scatter.
Every dtype is stored as itself: XLA:GPU scatters into a donated buffer in place whatever it holds.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.paging.pool import dropped_unless, from_storage, is_owned, to_storage


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class GpuKVPages:
    """The keys and values of one layer, in pages of ``page_size`` positions. Nobody owns page 0."""

    heads_PXpH: jax.Array

    @property
    def num_pages(self) -> int:
        return self.heads_PXpH.shape[0]

    @property
    def num_kv_heads(self) -> int:
        return self.heads_PXpH.shape[1] // 2

    @property
    def page_size(self) -> int:
        return self.heads_PXpH.shape[2]

    @property
    def head_dim(self) -> int:
        return self.heads_PXpH.shape[3]

    @property
    def dtype(self) -> np.dtype:
        return self.heads_PXpH.dtype

    def read(self, ids_n: jax.Array, keep_n: jax.Array) -> tuple[jax.Array, jax.Array]:
        nothing = jnp.zeros((), self.dtype)
        taken_nXpH = jnp.where(keep_n[:, None, None, None], self.heads_PXpH[ids_n], nothing)
        taken_npXH = taken_nXpH.transpose((0, 2, 1, 3))
        return taken_npXH[:, :, 0::2], taken_npXH[:, :, 1::2]

    def write(self, ids_n: jax.Array, keys_npKH: jax.Array, values_npKH: jax.Array) -> "GpuKVPages":
        heads_nXpH = _side_by_side(keys_npKH, values_npKH).transpose((0, 2, 1, 3))
        return GpuKVPages(heads_PXpH=self.heads_PXpH.at[ids_n].set(heads_nXpH, mode="drop"))

    def element(self, value: float) -> jax.Array:
        return from_storage(to_storage(jnp.float32(value), self.dtype), self.dtype)


def allocate_gpu_kv_pages(
    num_pages: int, page_size: int, num_kv_heads: int, head_dim: int, dtype: jax.typing.DTypeLike
) -> GpuKVPages:
    """A pool filled with zeros."""
    return GpuKVPages(
        heads_PXpH=jnp.zeros((num_pages, 2 * num_kv_heads, page_size, head_dim), dtype)
    )


def write_tokens(
    pages: GpuKVPages, k_TKH: jax.Array, v_TKH: jax.Array, page_T: jax.Array, offset_T: jax.Array
) -> GpuKVPages:
    """Writes one key and value a token, in the dtype of the pages; pages not in 1..P-1 are
    dropped."""
    page_T = dropped_unless(is_owned(page_T, pages), page_T, pages)
    return GpuKVPages(
        heads_PXpH=pages.heads_PXpH.at[page_T, :, offset_T].set(
            _side_by_side(k_TKH, v_TKH), mode="drop", wrap_negative_indices=False
        )
    )


def _side_by_side(keys_KH: jax.Array, values_KH: jax.Array) -> jax.Array:
    """``[..., K, H]`` twice as ``[..., 2 * K, H]``."""
    heads_K2H = jnp.stack((keys_KH, values_KH), axis=-2)
    return heads_K2H.reshape(*keys_KH.shape[:-2], -1, keys_KH.shape[-1])
