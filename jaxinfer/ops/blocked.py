"""Kernels of 16-bit weights in blocks of columns: how XLA:CPU multiplies a few rows fastest.

XLA:CPU rearranges a plain ``[in, out]`` kernel at every product, on one thread when there are few
rows, which takes as long for one row as for thirty. Written as multiply and add over ``[in, 64]``
blocks it becomes one pass over the weights as they lie, with the blocks divided among threads.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.shapes import Shape

BLOCK = 64
#: Beyond so many rows the plain product is faster.
FEW_ROWS = 2
#: A sum over fewer terms is folded into the multiplication and no longer vectorised.
_LEAST_TERMS = 33
#: What the multiply-and-add form needs of the compiler: not to be taken for a matrix product.
COMPILER_OPTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
    "xla_cpu_prefer_vector_width": 512,
}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlockedKernel:
    """A kernel ``[in, out]`` kept twice: as it is, and as blocks ``[out / 64, in, 64]``."""

    plain_IO: jax.Array
    blocks_nIo: jax.Array

    @property
    def shape(self) -> Shape:
        return self.plain_IO.shape


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlockedEmbedding:
    """An embedding used at both ends: rows ``[V, D]`` to look up, blocks to multiply with."""

    rows_VD: jax.Array
    blocks_nIo: jax.Array


def can_block(shape: Shape) -> bool:
    """Whether a kernel of this shape ``(in, out)`` divides into blocks."""
    size_in, size_out = shape
    return size_out % BLOCK == 0 and _num_slabs(size_in) > 1


def block(kernel: jax.Array, *, is_transposed: bool = False) -> jax.Array:
    """The blocks ``[out / 64, in, 64]`` of a kernel ``[in, out]``, or of one ``[out, in]``.

    Of a ShapeDtypeStruct it gives one.
    """
    size_in, size_out = kernel.shape[::-1] if is_transposed else kernel.shape
    if isinstance(kernel, jax.ShapeDtypeStruct):
        return kernel.update(shape=(size_out // BLOCK, size_in, BLOCK))
    host = np.asarray(kernel)
    if is_transposed:
        blocks_nIo = host.reshape(-1, BLOCK, size_in).transpose(0, 2, 1)
    else:
        blocks_nIo = host.reshape(size_in, -1, BLOCK).transpose(1, 0, 2)
    return jax.device_put(np.ascontiguousarray(blocks_nIo), kernel.sharding)


def multiply_few(x_RI: jax.Array, blocks_nIo: jax.Array) -> jax.Array:
    """Float32 ``[R, out]`` of a few rows.

    Slabs of the inner axis are added up term by term before the one sum that is left, which keeps
    that sum short and the reading of weights in step.
    """
    num_rows, size_in = x_RI.shape
    num_slabs = _num_slabs(size_in)
    slab = size_in // num_slabs
    x_RJP = x_RI.astype(jnp.float32).reshape(num_rows, num_slabs, slab)
    total = None
    for j in range(num_slabs):
        weights = blocks_nIo[:, j * slab : (j + 1) * slab].astype(jnp.float32)[:, :, None, :]
        terms_nPRo = weights * x_RJP[:, j].T[None, :, :, None]
        total = terms_nPRo if total is None else total + terms_nPRo
    assert total is not None
    return total.sum(axis=1).transpose(1, 0, 2).reshape(num_rows, -1)


def _num_slabs(size_in: int) -> int:
    """How many slabs the inner axis is added up in; 1 where it is too short to gain anything."""
    fitting = (n for n in (8, 4, 2) if size_in % n == 0 and size_in // n >= _LEAST_TERMS)
    return next(fitting, 1)
