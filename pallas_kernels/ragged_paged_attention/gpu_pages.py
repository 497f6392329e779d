"""Pages as a Hopper GPU wants them: keys and values as ``[pages, kv heads, page size, head dim]``.

A page of one kv head is one run of memory, which the copy engine (TMA) brings to shared memory, and
the tensor cores read keys and values in this order. Every dtype is stored as itself: XLA:GPU
scatters into a donated buffer in place whatever it holds.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class GPUPages:
    """The keys and values of one layer, in pages of ``page_size`` positions. Nobody owns page 0."""

    keys_PKpH: jax.Array
    values_PKpH: jax.Array

    key_axes: ClassVar[tuple[int, ...]] = (0, 2, 1, 3)
    """Where the axes ``[n, p, K, H]`` of gathered keys stand in the pool."""

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

    @property
    def dtype_name(self) -> str:
        return self.dtype.name

    @property
    def keys(self) -> jax.Array:
        return self.keys_PKpH

    @property
    def values(self) -> jax.Array:
        return self.values_PKpH

    def holding(self, keys: jax.Array, values: jax.Array) -> "GPUPages":
        """A pool of this kind with other content."""
        return GPUPages(keys_PKpH=keys, values_PKpH=values)


def allocate_gpu_pages(
    num_pages: int, page_size: int, num_kv_heads: int, head_dim: int, dtype: jax.typing.DTypeLike
) -> GPUPages:
    """A pool filled with zeros."""
    shape = (num_pages, num_kv_heads, page_size, head_dim)
    return GPUPages(keys_PKpH=jnp.zeros(shape, dtype), values_PKpH=jnp.zeros(shape, dtype))


def write_tokens(
    pages: GPUPages, k_TKH: jax.Array, v_TKH: jax.Array, page_T: jax.Array, offset_T: jax.Array
) -> GPUPages:
    """Writes one key and value a token, in the dtype of the pages; pages not in 1..P-1 are
    dropped."""
    is_owned_T = (page_T > 0) & (page_T < pages.num_pages)
    page_T = jnp.where(is_owned_T, page_T, jnp.int32(pages.num_pages))
    options: dict[str, Any] = {"mode": "drop", "wrap_negative_indices": False}
    return GPUPages(
        keys_PKpH=pages.keys_PKpH.at[page_T, :, offset_T].set(k_TKH, **options),
        values_PKpH=pages.values_PKpH.at[page_T, :, offset_T].set(v_TKH, **options),
    )
