"""Paged keys and values: one layer's pool, an opaque pytree for everyone outside this folder.

Keys lie transposed, ``[pages, kv heads, head dim, page size]``, and values plain, ``[pages, kv
heads, page size, head dim]``, so that both products of attention read along the last axis.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from pallas_kernels.paging.pool import (
    STORAGE,
    AnyPages,
    Pages,
    copy_pages,
    dropped_unless,
    fill_pages,
    from_storage,
    gather_pages,
    is_owned,
    scatter_pages,
    to_storage,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class KVPages:
    """The keys and values of one layer, in pages of ``page_size`` positions. Nobody owns page 0."""

    keys_PKHp: jax.Array
    values_PKpH: jax.Array
    dtype_name: str = field(metadata={"static": True})

    @property
    def num_pages(self) -> int:
        return self.keys_PKHp.shape[0]

    @property
    def num_kv_heads(self) -> int:
        return self.keys_PKHp.shape[1]

    @property
    def head_dim(self) -> int:
        return self.keys_PKHp.shape[2]

    @property
    def page_size(self) -> int:
        return self.keys_PKHp.shape[3]

    @property
    def dtype(self) -> np.dtype:
        """The dtype of a stored key or value (not of the array that holds it)."""
        return jnp.dtype(self.dtype_name)

    def read(self, ids_n: jax.Array, keep_n: jax.Array) -> tuple[jax.Array, jax.Array]:
        def pages_of(pool: jax.Array, axes: tuple[int, ...]) -> jax.Array:
            bits = jnp.where(keep_n[:, None, None, None], pool[ids_n], jnp.zeros((), pool.dtype))
            return from_storage(bits.transpose(axes), self.dtype)

        return pages_of(self.keys_PKHp, (0, 3, 1, 2)), pages_of(self.values_PKpH, (0, 2, 1, 3))

    def write(self, ids_n: jax.Array, keys_npKH: jax.Array, values_npKH: jax.Array) -> "KVPages":
        def put(pool: jax.Array, x_npKH: jax.Array, axes: tuple[int, ...]) -> jax.Array:
            bits = jax.lax.bitcast_convert_type(x_npKH, pool.dtype)
            return pool.at[ids_n].set(bits.transpose(axes), mode="drop")

        return KVPages(
            keys_PKHp=put(self.keys_PKHp, keys_npKH, (0, 2, 3, 1)),
            values_PKpH=put(self.values_PKpH, values_npKH, (0, 2, 1, 3)),
            dtype_name=self.dtype_name,
        )

    def element(self, value: float) -> jax.Array:
        return to_storage(jnp.float32(value), self.dtype)


def check_pool(
    num_pages: int, page_size: int, num_kv_heads: int, head_dim: int, dtype: jax.typing.DTypeLike
) -> None:
    """Raises ``ValueError`` for a size below 1 or a dtype not in ``STORAGE``."""
    name = jnp.dtype(dtype).name
    if name not in STORAGE:
        raise ValueError(f"dtype = {name} is not one of {', '.join(STORAGE)}")
    for what, size in (
        ("num_pages", num_pages),
        ("page_size", page_size),
        ("num_kv_heads", num_kv_heads),
        ("head_dim", head_dim),
    ):
        if size < 1:
            raise ValueError(f"{what} = {size} is not 1 or more")


def allocate_kv_pages(
    num_pages: int, page_size: int, num_kv_heads: int, head_dim: int, dtype: jax.typing.DTypeLike
) -> KVPages:
    """A pool filled with zeros."""
    name = jnp.dtype(dtype).name
    storage = STORAGE[name]
    return KVPages(
        keys_PKHp=jnp.zeros((num_pages, num_kv_heads, head_dim, page_size), storage),
        values_PKpH=jnp.zeros((num_pages, num_kv_heads, page_size, head_dim), storage),
        dtype_name=name,
    )


def kv_pages_spec(axis: str | tuple[str, ...] | None) -> PartitionSpec:
    """The PartitionSpec of every leaf of a pool whose kv heads are split over mesh ``axis``."""
    return PartitionSpec(None, axis)


def write_tokens(
    pages: KVPages, k_TKH: jax.Array, v_TKH: jax.Array, page_T: jax.Array, offset_T: jax.Array
) -> KVPages:
    """Writes the stored bits of one key and value a token; pages not in 1..P-1 are dropped."""
    page_T = dropped_unless(is_owned(page_T, pages), page_T, pages)
    options: dict[str, Any] = {"mode": "drop", "wrap_negative_indices": False}
    return KVPages(
        keys_PKHp=pages.keys_PKHp.at[page_T, :, :, offset_T].set(k_TKH, **options),
        values_PKpH=pages.values_PKpH.at[page_T, :, offset_T, :].set(v_TKH, **options),
        dtype_name=pages.dtype_name,
    )


copy_kv_pages = copy_pages
fill_kv_pages = fill_pages


def gather_kv_pages(pages: Pages, ids_n: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Reads pages ``ids_n`` as keys and values ``[n, page_size, K, H]`` of the pool's dtype.

    An id that is not in 1..P-1 reads as zeros.
    """
    return gather_pages(pages, ids_n)


def scatter_kv_pages(
    pages: AnyPages, ids_n: jax.Array, keys_npKH: jax.Array, values_npKH: jax.Array
) -> AnyPages:
    """Writes whole pages, as ``gather_kv_pages`` returned them, to ``ids_n``; the inverse of it.

    An id that is not in 1..P-1 is ignored. Raises ``ValueError`` for arrays of another shape, or
    of another dtype than the pool's.
    """
    heads = (pages.num_kv_heads, pages.head_dim)
    return scatter_pages(pages, ids_n, keys=(keys_npKH, heads), values=(values_npKH, heads))
