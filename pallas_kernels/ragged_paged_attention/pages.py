"""Paged keys and values: one layer's pool, an opaque pytree for everyone outside this folder.

Keys lie transposed, ``[pages, kv heads, head dim, page size]``, and values plain, ``[pages, kv
heads, page size, head dim]``, so that both products of attention read along the last axis. 16-bit
floats are stored as uint16 and fp8 as uint8: XLA:CPU updates integers in place, but copies a whole
pool of small floats. Only new rows and gathered blocks are bitcast, never the pool.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from pallas_kernels.ragged_paged_attention.rows import take

STORAGE = {
    "float32": "float32",
    "bfloat16": "uint16",
    "float16": "uint16",
    "float8_e4m3fn": "uint8",
    "float8_e5m2": "uint8",
    "int8": "int8",
}
"""The dtypes a page can hold, and the dtype of the array that holds them."""


class Pages(Protocol):
    """What the companions ask of a pool, whatever its layout: a pytree whose leaves begin with P.

    Ids are in ``0..P-1`` to ``read``; ``write`` drops those beyond the pool.
    """

    @property
    def num_pages(self) -> int: ...

    @property
    def page_size(self) -> int: ...

    @property
    def num_kv_heads(self) -> int: ...

    @property
    def head_dim(self) -> int: ...

    @property
    def dtype(self) -> np.dtype: ...

    def read(self, ids_n: jax.Array, keep_n: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values ``[n, page_size, K, H]``; zeros where not kept."""

    def write(self, ids_n: jax.Array, keys_npKH: jax.Array, values_npKH: jax.Array) -> Any:
        """A pool of the same kind with these pages in it."""

    def element(self, value: float) -> jax.Array:
        """A number as the leaves hold it."""


AnyPages = TypeVar("AnyPages", bound=Pages)


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


def to_storage(x: jax.Array, dtype: np.dtype) -> jax.Array:
    """``x`` rounded to ``dtype``, saturating at its largest finite value, as stored bits."""
    x = x.astype(jnp.float32)
    if dtype == jnp.int8:
        return jnp.clip(jnp.round(x), -127, 127).astype(jnp.int8)
    if dtype.itemsize == 1:
        largest = jnp.finfo(dtype).max.astype(jnp.float32)
        x = jnp.clip(x, -largest, largest)
    return jax.lax.bitcast_convert_type(x.astype(dtype), STORAGE[dtype.name])


def from_storage(bits: jax.Array, dtype: np.dtype) -> jax.Array:
    """Stored ``bits`` as an array of ``dtype``."""
    return jax.lax.bitcast_convert_type(bits, dtype)


def take_pages(pool: jax.Array, id_x: jax.Array) -> jax.Array:
    """Whole pages ``[*x, ...]``, taken as flat runs of memory: faster than the 4-d form."""
    runs = take(pool.reshape(pool.shape[0], -1), id_x)
    return runs.reshape(*id_x.shape, *pool.shape[1:])


def to_float32(bits: jax.Array, dtype: np.dtype) -> jax.Array:
    """Stored bits as float32; bfloat16 by a shift, which XLA:CPU runs faster than a conversion."""
    if dtype == jnp.bfloat16:
        return jax.lax.bitcast_convert_type(bits.astype(jnp.uint32) << 16, jnp.float32)
    return from_storage(bits, dtype).astype(jnp.float32)


def _owned(ids_n: jax.Array, pages: Pages) -> jax.Array:
    return (ids_n > 0) & (ids_n < pages.num_pages)


def _dropped_unless(keep_n: jax.Array, ids_n: jax.Array, pages: Pages) -> jax.Array:
    """``ids_n`` with those not kept moved beyond the pool, where ``mode="drop"`` ignores them."""
    return jnp.where(keep_n, ids_n, jnp.int32(pages.num_pages))


def write_tokens(
    pages: KVPages, k_TKH: jax.Array, v_TKH: jax.Array, page_T: jax.Array, offset_T: jax.Array
) -> KVPages:
    """Writes the stored bits of one key and value a token; pages not in 1..P-1 are dropped."""
    page_T = _dropped_unless(_owned(page_T, pages), page_T, pages)
    options: dict[str, Any] = {"mode": "drop", "wrap_negative_indices": False}
    return KVPages(
        keys_PKHp=pages.keys_PKHp.at[page_T, :, :, offset_T].set(k_TKH, **options),
        values_PKpH=pages.values_PKpH.at[page_T, :, offset_T, :].set(v_TKH, **options),
        dtype_name=pages.dtype_name,
    )


def stored_tokens(x_TKH: jax.Array, dtype: np.dtype, scale_K: jax.Array | None) -> jax.Array:
    """New keys or values as the bits a page would hold, divided by their scale."""
    if scale_K is not None:
        x_TKH = x_TKH.astype(jnp.float32) / scale_K.astype(jnp.float32)[None, :, None]
    elif x_TKH.dtype == dtype:
        return jax.lax.bitcast_convert_type(x_TKH, STORAGE[dtype.name])
    return to_storage(x_TKH, dtype)


def copy_kv_pages(pages: AnyPages, src_n: jax.Array, dst_n: jax.Array) -> AnyPages:
    """Copies page ``src_n[i]`` onto page ``dst_n[i]`` (copy-on-write); all are read before any is
    written.

    Int32 ids ``[n]``. A pair whose ``src`` or ``dst`` is not in 1..P-1 is ignored, so ``(0, 0)``
    pads.
    """
    src_n, dst_n = jnp.asarray(src_n), jnp.asarray(dst_n)
    keep_n = _owned(src_n, pages) & _owned(dst_n, pages)
    dst_n = _dropped_unless(keep_n, dst_n, pages)
    src_n = jnp.where(keep_n, src_n, jnp.int32(0))
    return jax.tree.map(lambda pool: pool.at[dst_n].set(pool[src_n], mode="drop"), pages)


def gather_kv_pages(pages: Pages, ids_n: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Reads pages ``ids_n`` as keys and values ``[n, page_size, K, H]`` of the pool's dtype.

    An id that is not in 1..P-1 reads as zeros.
    """
    ids_n = jnp.asarray(ids_n)
    keep_n = _owned(ids_n, pages)
    return pages.read(jnp.where(keep_n, ids_n, jnp.int32(0)), keep_n)


def scatter_kv_pages(
    pages: AnyPages, ids_n: jax.Array, keys_npKH: jax.Array, values_npKH: jax.Array
) -> AnyPages:
    """Writes whole pages, as ``gather_kv_pages`` returned them, to ``ids_n``; the inverse of it.

    An id that is not in 1..P-1 is ignored. The arrays must have the pool's dtype.
    """
    ids_n = jnp.asarray(ids_n)
    ids_n = _dropped_unless(_owned(ids_n, pages), ids_n, pages)
    for name, x in (("keys", keys_npKH), ("values", values_npKH)):
        if x.dtype != pages.dtype:
            raise ValueError(f"{name} have dtype {x.dtype}: the pages hold {pages.dtype}")
    return pages.write(ids_n, keys_npKH, values_npKH)


def fill_kv_pages(pages: AnyPages, ids_n: jax.Array, value: float) -> AnyPages:
    """Fills pages ``ids_n`` (page 0 too) with ``value``, unscaled: NaN poisons what must not be
    read.

    Int8 pages cannot hold NaN or infinity: ``ValueError``.
    """
    if pages.dtype == jnp.int8 and not np.isfinite(value):
        raise ValueError(f"value = {value} cannot be held by int8 pages: it must be finite")
    element = pages.element(value)
    ids_n = jnp.asarray(ids_n)
    ids_n = _dropped_unless(ids_n >= 0, ids_n, pages)
    return jax.tree.map(lambda pool: pool.at[ids_n].set(element, mode="drop"), pages)
