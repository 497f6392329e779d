"""Kernels of 16-bit weights in blocks of columns: how XLA:CPU multiplies a few rows fastest.

For a plain ``[in, out]`` kernel XLA:CPU rearranges the weights at every product, which takes as
long for one row as for sixty. As a batch of ``[in, 64]`` blocks they are read as they lie. The
sums, and so the bits of the result, are the same in both layouts.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.shapes import Shape

BLOCK = 64
#: A batched product of many more blocks falls onto a slow path; larger kernels come in parts.
_MOST_BLOCKS = 48


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlockedKernel:
    """A kernel ``[in, out]`` as parts ``[n, in, 64]``, the columns in their order."""

    parts: tuple[jax.Array, ...]

    @property
    def shape(self) -> Shape:
        num_blocks = sum(part.shape[0] for part in self.parts)
        return self.parts[0].shape[1], num_blocks * BLOCK


    def joined(self) -> jax.Array:
        """The kernel as one array ``[in, out]``."""
        columns = np.concatenate([np.asarray(part) for part in self.parts])
        kernel = np.ascontiguousarray(columns.transpose(1, 0, 2)).reshape(self.shape)
        return jax.device_put(kernel, self.parts[0].sharding)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlockedEmbedding:
    """An embedding used at both ends: ``rows_VD`` to look up, ``head`` to multiply with."""

    rows_VD: jax.Array
    head: BlockedKernel


def block_kernel(kernel: jax.Array) -> BlockedKernel:
    """The blocks of a kernel ``[in, out]``; ``out`` must divide by 64."""
    columns = np.asarray(kernel).reshape(kernel.shape[0], -1, BLOCK)
    parts = [
        np.ascontiguousarray(columns[:, start : start + _MOST_BLOCKS].transpose(1, 0, 2))
        for start in range(0, columns.shape[1], _MOST_BLOCKS)
    ]
    return BlockedKernel(tuple(jax.device_put(part, kernel.sharding) for part in parts))


def multiply(x: jax.Array, kernel: BlockedKernel) -> jax.Array:
    """Float32 ``[..., out]``."""
    rows = x.reshape(-1, x.shape[-1])
    products = [_multiply_part(rows, part) for part in kernel.parts]
    y = products[0] if len(products) == 1 else jnp.concatenate(products, axis=1)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _multiply_part(rows: jax.Array, part: jax.Array) -> jax.Array:
    repeated = jnp.broadcast_to(rows[None], (part.shape[0], *rows.shape))
    blocks = jnp.einsum("nRi,nio->nRo", repeated, part, preferred_element_type=jnp.float32)
    return blocks.transpose(1, 0, 2).reshape(rows.shape[0], -1)
