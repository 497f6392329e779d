"""Kernels packed for the CPU that is here, see ``pallas_kernels.packed_matmul``: one copy for all
programs, from one row to whole prompts."""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer.shapes import Shape
from pallas_kernels import native
from pallas_kernels.packed_matmul import (
    pack,
    packed_matmul,
    packed_silu_gate,
    refuse,
    unpack,
    unpack_columns,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LiveRows:
    """How many (an int32) of ``num_rows`` rows are no padding: the first ones."""

    num_live: jax.Array
    num_rows: int = field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PackedKernel:
    """A kernel ``[in, out]`` in panels; ``live``: which rows of the tokens' products are needed."""

    panels_njop: jax.Array
    size_out: int = field(metadata={"static": True})
    live: LiveRows | None = None

    @property
    def shape(self) -> Shape:
        return (2 * self.panels_njop.shape[1], self.size_out)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PackedEmbedding:
    """An embedding ``[V, D]`` used at both ends, as the panels of ``[D, V]``."""

    kernel_DV: PackedKernel


def packing_reason() -> str | None:
    """Why no kernel can be packed on this machine, or None."""
    return native.missing()


def can_pack(shape: Shape, dtype: jnp.dtype) -> bool:
    return refuse(shape, dtype) is None


def pack_kernel(kernel_IO: jax.Array) -> PackedKernel:
    """Of a ShapeDtypeStruct it gives one."""
    return PackedKernel(pack(kernel_IO), kernel_IO.shape[1])


def pack_embedding(embedding_VD: jax.Array) -> PackedEmbedding:
    """Of a ShapeDtypeStruct it gives one."""
    return PackedEmbedding(
        PackedKernel(pack(embedding_VD, is_transposed=True), embedding_VD.shape[0])
    )


def for_live_rows(params: Any, live: LiveRows) -> Any:
    """A tree of parameters whose packed kernels take rows that are not live for padding: their
    products are zeros, and cost no more than those."""

    def mark(leaf: Any) -> Any:
        return replace(leaf, live=live) if isinstance(leaf, PackedKernel) else leaf

    return jax.tree.map(mark, params, is_leaf=lambda leaf: isinstance(leaf, PackedKernel))


def multiply_packed(x: jax.Array, kernel: PackedKernel) -> jax.Array:
    """Float32 ``[..., out]`` of ``x [..., in]``."""
    if x.dtype != jnp.bfloat16:
        weights_IO = unpack(kernel.panels_njop, kernel.size_out)
        return jnp.matmul(x, weights_IO, preferred_element_type=jnp.float32)
    rows = x.reshape(-1, x.shape[-1])
    y = packed_matmul(rows, kernel.panels_njop, kernel.size_out, _num_live(x, kernel))
    return y.reshape(*x.shape[:-1], -1)


def silu_gate_packed(x: jax.Array, kernel: PackedKernel) -> jax.Array:
    """``silu(gate) * up`` in bfloat16 of bfloat16 ``x [..., in]``; the halves of the kernel are
    those of gate and up, in whole panels."""
    rows = x.reshape(-1, x.shape[-1])
    y = packed_silu_gate(rows, kernel.panels_njop, _num_live(x, kernel))
    return y.reshape(*x.shape[:-1], -1)


def _num_live(x: jax.Array, kernel: PackedKernel) -> jax.Array | None:
    """Of the rows of x, if it has one for each token of the step."""
    live = kernel.live
    return live.num_live if live is not None and x.shape[:-1] == (live.num_rows,) else None


def look_up_packed(embedding: PackedEmbedding, ids_T: jax.Array) -> jax.Array:
    """The rows ``[T, D]`` of ``ids_T``; ids outside the table read its nearest row."""
    kernel_DV = embedding.kernel_DV
    return unpack_columns(kernel_DV.panels_njop, jnp.clip(ids_T, 0, kernel_DV.size_out - 1))
