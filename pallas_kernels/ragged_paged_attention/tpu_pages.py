"""Paged keys and values for the TPU kernel: one pool, in which a key and its value are joined.

A page lies as ``[kv heads, page size, lanes]``, so that one copy brings it whole and the positions
of one head are the rows of a matrix that the matrix unit takes as it is. Registers have 128 lanes:
a key and a value of 64 fill them together, where two pools would hold as much padding again.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.paging.pool import from_storage, to_storage
from pallas_kernels.paging.tpu_registers import LANES, align, rows_of

PAGE_BYTES = 2**20
"""The largest page of one kv head: a few of them are in VMEM, and must leave room for the rest."""

DTYPES = ("float32", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8")
"""What a page can hold. The compiler knows no float16."""


class Lanes(NamedTuple):
    """Where a key and a value lie in the ``width`` lanes of a position; a key begins at 0.

    The kernel reads whole registers: keys are the first ``key_width`` lanes (queries are zero
    beyond the key), values are those from ``value_register`` on, and the first ``value_offset`` of
    their result are no value.
    """

    width: int
    key_width: int
    value_start: int

    @property
    def value_register(self) -> int:
        return self.value_start // LANES * LANES

    @property
    def value_width(self) -> int:
        return self.width - self.value_register

    @property
    def value_offset(self) -> int:
        return self.value_start - self.value_register


def lanes_of(head_dim: int) -> Lanes:
    """Key and value each in registers of their own, unless joining them saves one."""
    key_width = align(head_dim, LANES)
    joined = align(2 * head_dim, LANES)
    if joined < 2 * key_width:
        return Lanes(joined, key_width, head_dim)
    return Lanes(2 * key_width, key_width, key_width)


def refuse_pages(page_size: int, head_dim: int, dtype: jax.typing.DTypeLike) -> str | None:
    """Why pages of this kind cannot be served, or None."""
    name = jnp.dtype(dtype).name
    if name not in DTYPES:
        return f"pages of {name} are not one of {', '.join(DTYPES)}"
    least = rows_of(dtype)
    if page_size < least or page_size & (page_size - 1):
        return f"page_size = {page_size} is not a power of two from {least} on, for {name}"
    lanes = lanes_of(head_dim)
    page_bytes = page_size * lanes.width * jnp.dtype(dtype).itemsize
    if page_bytes > PAGE_BYTES:
        return (
            f"a page of {page_bytes} bytes a kv head is above {PAGE_BYTES}: "
            "take a smaller page_size"
        )
    return None


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TpuKVPages:
    """The keys and values of one layer, in pages of ``page_size`` positions. Nobody owns page 0."""

    kv_PKpW: jax.Array
    head_dim: int = field(metadata={"static": True})

    @property
    def num_pages(self) -> int:
        return self.kv_PKpW.shape[0]

    @property
    def num_kv_heads(self) -> int:
        return self.kv_PKpW.shape[1]

    @property
    def page_size(self) -> int:
        return self.kv_PKpW.shape[2]

    @property
    def dtype(self) -> np.dtype:
        return self.kv_PKpW.dtype

    def read(self, ids_n: jax.Array, keep_n: jax.Array) -> tuple[jax.Array, jax.Array]:
        nothing = jnp.zeros((), self.dtype)
        kv_nKpW = jnp.where(keep_n[:, None, None, None], self.kv_PKpW[ids_n], nothing)
        kv_npKW = kv_nKpW.transpose((0, 2, 1, 3))
        start = lanes_of(self.head_dim).value_start
        return kv_npKW[..., : self.head_dim], kv_npKW[..., start : start + self.head_dim]

    def write(self, ids_n: jax.Array, keys_npKH: jax.Array, values_npKH: jax.Array) -> "TpuKVPages":
        kv_nKpW = join(keys_npKH, values_npKH).transpose((0, 2, 1, 3))
        written = self.kv_PKpW.at[ids_n].set(kv_nKpW, mode="drop")
        return TpuKVPages(kv_PKpW=written, head_dim=self.head_dim)

    def element(self, value: float) -> jax.Array:
        return from_storage(to_storage(jnp.float32(value), self.dtype), self.dtype)


def allocate_tpu_kv_pages(
    num_pages: int, page_size: int, num_kv_heads: int, head_dim: int, dtype: jax.typing.DTypeLike
) -> TpuKVPages:
    """A pool filled with zeros."""
    shape = (num_pages, num_kv_heads, page_size, lanes_of(head_dim).width)
    return TpuKVPages(kv_PKpW=jnp.zeros(shape, dtype), head_dim=head_dim)


def join(keys: jax.Array, values: jax.Array) -> jax.Array:
    """Keys and values ``[..., H]`` as the lanes of their positions, ``[..., W]``."""
    head_dim = keys.shape[-1]
    lanes = lanes_of(head_dim)

    def pad(x: jax.Array, width: int) -> jax.Array:
        return jnp.pad(x, ((0, 0),) * (x.ndim - 1) + ((0, width - head_dim),))

    return jnp.concatenate(
        [pad(keys, lanes.value_start), pad(values, lanes.width - lanes.value_start)], axis=-1
    )
