"""How parameters lie in memory: as declared, or as the platform multiplies them fastest."""

import jax
import jax.numpy as jnp

from jaxinfer.config import ModelConfig
from jaxinfer.ops.blocked import BLOCK, BlockedEmbedding, BlockedKernel, block_kernel
from jaxinfer.shapes import Tree


def lay_out(params: Tree, config: ModelConfig, *, platform: str, num_devices: int) -> Tree:
    """The same parameters; on one CPU, bfloat16 kernels become ``BlockedKernel``.

    A tied embedding is kept twice then, as rows and as blocks. Leaves are replaced one by one in
    the nested dict that is given, so that at most one tensor exists twice.
    """
    if platform != "cpu" or num_devices > 1:
        return params
    embed = params["embed"]
    if config.tied_head and _can_block(embed["embedding"].T):
        rows_VD = embed["embedding"]
        embed["embedding"] = BlockedEmbedding(rows_VD, block_kernel(rows_VD.T))
    _block_kernels(params)
    return params


def as_declared(params: Tree) -> Tree:
    """The inverse of ``lay_out``: every parameter one array of its declared shape."""
    return jax.tree.map(
        _declared,
        params,
        is_leaf=lambda leaf: isinstance(leaf, BlockedKernel | BlockedEmbedding),
    )


def _declared(leaf: jax.Array | BlockedKernel | BlockedEmbedding) -> jax.Array:
    if isinstance(leaf, BlockedEmbedding):
        return leaf.rows_VD
    return leaf.joined() if isinstance(leaf, BlockedKernel) else leaf


def _block_kernels(node: dict) -> None:
    for name, child in node.items():
        if isinstance(child, dict):
            _block_kernels(child)
        elif name == "kernel" and _can_block(child):
            node[name] = block_kernel(child)


def _can_block(kernel: jax.Array) -> bool:
    return kernel.dtype == jnp.bfloat16 and kernel.shape[-1] % BLOCK == 0
