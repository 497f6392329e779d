"""Pages as a Hopper GPU wants them: keys and values as ``[pages, kv heads, page size, head dim]``.

A page of one kv head is one run of memory, which the copy engine (TMA) brings to shared memory, and
the tensor cores read keys and values in this order. Every dtype is stored as itself: XLA:GPU
scatters into a donated buffer in place whatever it holds.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.paging.pool import dropped_unless, from_storage, is_owned, to_storage


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class GpuKVPages:
    """The keys and values of one layer, in pages of ``page_size`` positions. Nobody owns page 0."""

    keys_PKpH: jax.Array
    values_PKpH: jax.Array

    @property
    def num_pages(self) -> int:
        return self.keys_PKpH.shape[0]

    @property
    def num_kv_heads(self) -> int:
        return self.keys_PKpH.shape[1]

    @property
    def page_size(self) -> int:
        return self.keys_PKpH.shape[2]

    @property
    def head_dim(self) -> int:
        return self.keys_PKpH.shape[3]

    @property
    def dtype(self) -> np.dtype:
        return self.keys_PKpH.dtype

    def read(self, ids_n: jax.Array, keep_n: jax.Array) -> tuple[jax.Array, jax.Array]:
        nothing = jnp.zeros((), self.dtype)
        keys, values = (
            jnp.where(keep_n[:, None, None, None], pool[ids_n], nothing).transpose((0, 2, 1, 3))
            for pool in (self.keys_PKpH, self.values_PKpH)
        )
        return keys, values

    def write(self, ids_n: jax.Array, keys_npKH: jax.Array, values_npKH: jax.Array) -> "GpuKVPages":
        def put(pool: jax.Array, x_npKH: jax.Array) -> jax.Array:
            return pool.at[ids_n].set(x_npKH.transpose((0, 2, 1, 3)), mode="drop")

        return GpuKVPages(
            keys_PKpH=put(self.keys_PKpH, keys_npKH), values_PKpH=put(self.values_PKpH, values_npKH)
        )

    def element(self, value: float) -> jax.Array:
        return from_storage(to_storage(jnp.float32(value), self.dtype), self.dtype)


def allocate_gpu_kv_pages(
    num_pages: int, page_size: int, num_kv_heads: int, head_dim: int, dtype: jax.typing.DTypeLike
) -> GpuKVPages:
    """A pool filled with zeros."""
    shape = (num_pages, num_kv_heads, page_size, head_dim)
    return GpuKVPages(keys_PKpH=jnp.zeros(shape, dtype), values_PKpH=jnp.zeros(shape, dtype))


def write_tokens(
    pages: GpuKVPages, k_TKH: jax.Array, v_TKH: jax.Array, page_T: jax.Array, offset_T: jax.Array
) -> GpuKVPages:
    """Writes one key and value a token, in the dtype of the pages; pages not in 1..P-1 are
    dropped."""
    page_T = dropped_unless(is_owned(page_T, pages), page_T, pages)
    options: dict[str, Any] = {"mode": "drop", "wrap_negative_indices": False}
    return GpuKVPages(
        keys_PKpH=pages.keys_PKpH.at[page_T, :, offset_T].set(k_TKH, **options),
        values_PKpH=pages.values_PKpH.at[page_T, :, offset_T].set(v_TKH, **options),
    )
