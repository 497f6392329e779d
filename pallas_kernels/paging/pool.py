"""Pools of pages: what they hold, and what is done with whole pages whatever their layout.

16-bit floats are stored as uint16 and fp8 as uint8: XLA:CPU updates integers in place, but copies a
whole pool of small floats. Only new rows and gathered blocks are bitcast, never the pool.
"""

from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.nonnegative import take

STORAGE = {
    "float32": "float32",
    "bfloat16": "uint16",
    "float16": "uint16",
    "float8_e4m3fn": "uint8",
    "float8_e5m2": "uint8",
    "int8": "int8",
}
"""The dtypes a page can hold, and the dtype of the array that holds them."""

XLA_PAGE_SIZES = (8, 16, 32, 64, 128, 256)
"""The usual positions of a page: kernels take some of these, ``xla`` of ragged paged attention
these and no others, that of latent attention any."""


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


def is_owned(ids_n: jax.Array, pages: Pages) -> jax.Array:
    """Which ids are pages that somebody may own: 1..P-1."""
    return (ids_n > 0) & (ids_n < pages.num_pages)


def dropped_unless(keep_n: jax.Array, ids_n: jax.Array, pages: Pages) -> jax.Array:
    """``ids_n`` with those not kept moved beyond the pool, where ``mode="drop"`` ignores them."""
    return jnp.where(keep_n, ids_n, jnp.int32(pages.num_pages))


def stored_tokens(x_TKH: jax.Array, dtype: np.dtype, scale_K: jax.Array | None) -> jax.Array:
    """New keys or values as the bits a page would hold, divided by their scale."""
    if scale_K is not None:
        x_TKH = x_TKH.astype(jnp.float32) / scale_K.astype(jnp.float32)[None, :, None]
    elif x_TKH.dtype == dtype:
        return jax.lax.bitcast_convert_type(x_TKH, STORAGE[dtype.name])
    return to_storage(x_TKH, dtype)


def rounded_tokens(x_TKH: jax.Array, dtype: np.dtype, scale_K: jax.Array | None) -> jax.Array:
    """``stored_tokens`` as numbers of the pages' dtype."""
    return from_storage(stored_tokens(x_TKH, dtype, scale_K), dtype)


def list_of_ids(ids_n: jax.typing.ArrayLike) -> jax.Array:
    """Ids of pages as int32 ``[n]``. Raises ``ValueError`` for anything but a list of integers.

    Numbers of 64 bits that NumPy holds are no page where they are too large: without their upper
    half they could be one.
    """
    ids = ids_n if isinstance(ids_n, jax.Array) else np.asarray(ids_n)
    if ids.ndim != 1 or not (ids.size == 0 or jnp.issubdtype(ids.dtype, jnp.integer)):
        raise ValueError(
            f"ids of shape {ids.shape} and dtype {ids.dtype} are not allowed: they must be a list"
            " [n] of integers"
        )
    if isinstance(ids, np.ndarray):
        int32 = np.iinfo(np.int32)
        ids = np.clip(ids, int32.min, int32.max)
    return jnp.asarray(ids, jnp.int32)


def copy_pages(pages: AnyPages, src_n: jax.Array, dst_n: jax.Array) -> AnyPages:
    """Copies page ``src_n[i]`` onto page ``dst_n[i]`` (copy-on-write); all are read before any is
    written.

    Int32 ids ``[n]``. A pair whose ``src`` or ``dst`` is not in 1..P-1 is ignored, so ``(0, 0)``
    pads. Raises ``ValueError`` unless both are one list each, of the same length.
    """
    src_n, dst_n = list_of_ids(src_n), list_of_ids(dst_n)
    if src_n.shape != dst_n.shape:
        raise ValueError(
            f"ids of shapes {src_n.shape} to copy from and {dst_n.shape} to copy to are not"
            " allowed: they must be two lists of the same length [n]"
        )
    keep_n = is_owned(src_n, pages) & is_owned(dst_n, pages)
    dst_n = dropped_unless(keep_n, dst_n, pages)
    src_n = jnp.where(keep_n, src_n, jnp.int32(0))
    return jax.tree.map(lambda pool: pool.at[dst_n].set(pool[src_n], mode="drop"), pages)


def gather_pages(pages: Pages, ids_n: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Reads pages ``ids_n`` in the pool's dtype. An id that is not in 1..P-1 reads as zeros."""
    ids_n = list_of_ids(ids_n)
    keep_n = is_owned(ids_n, pages)
    return pages.read(jnp.where(keep_n, ids_n, jnp.int32(0)), keep_n)


def scatter_pages(
    pages: AnyPages, ids_n: jax.Array, **parts: tuple[jax.Array, tuple[int, ...]]
) -> AnyPages:
    """Writes whole pages as ``gather_pages`` returned them: two ``parts``, by what they are called,
    each with the shape of one position of it.

    An id that is not in 1..P-1 is ignored. Raises ``ValueError`` for parts of another shape or
    dtype.
    """
    ids_n = list_of_ids(ids_n)
    for name, (x, position) in parts.items():
        allowed = (ids_n.size, pages.page_size, *position)
        if x.shape != allowed:
            raise ValueError(
                f"{name} have shape {x.shape}: {ids_n.size} pages of {pages.page_size} positions"
                f" take {allowed}"
            )
        if x.dtype != pages.dtype:
            raise ValueError(f"{name} have dtype {x.dtype}: the pages hold {pages.dtype}")
    (first, _), (second, _) = parts.values()
    return pages.write(dropped_unless(is_owned(ids_n, pages), ids_n, pages), first, second)


def fill_pages(pages: AnyPages, ids_n: jax.Array, value: float) -> AnyPages:
    """Fills pages ``ids_n`` (page 0 too) with ``value``, unscaled: NaN poisons what must not be
    read.

    Int8 pages cannot hold NaN or infinity: ``ValueError``.
    """
    if pages.dtype == jnp.int8 and not np.isfinite(value):
        raise ValueError(f"value = {value} cannot be held by int8 pages: it must be finite")
    element = pages.element(value)
    ids_n = list_of_ids(ids_n)
    ids_n = dropped_unless(ids_n >= 0, ids_n, pages)
    return jax.tree.map(lambda pool: pool.at[ids_n].set(element, mode="drop"), pages)
