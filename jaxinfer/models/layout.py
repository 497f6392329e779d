"""How parameters lie in memory: as declared, and as a platform multiplies them fastest."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxinfer.models.model import Model
from jaxinfer.ops.blocked import (
    FEW_ROWS,
    BlockedEmbedding,
    BlockedKernel,
    block,
    can_block,
)
from jaxinfer.ops.joined import InJoined, JoinedKernel, join
from jaxinfer.shapes import Shape, Tree

#: Layers that stand side by side and multiply the same input.
_SIDE_BY_SIDE = (("q", "k", "v"), ("gate", "up"), ("q", "kv_down"), ("q_down", "kv_down"))


def for_decoding(model: Model, num_slots: int, *, release: bool = False) -> Model:
    """The model with its kernels as decode steps of ``num_slots`` rows gain on one CPU.

    Kernels of the same input are joined. In bfloat16 with few slots all are also kept in blocks,
    which takes the memory of the weights again: then what float32 weights would take.

    A blank model gives a blank one. Joining copies. ``release``: ``model`` gives up its kernels one
    by one as they are joined, so that no weights lie in memory twice, and has no use afterwards.
    Without it, it stays as it is.
    """
    platform = model.mesh.devices.flat[0].platform
    if platform != "cpu" or model.mesh.size > 1:
        return model
    params = _joined(model.params, release)
    if num_slots <= FEW_ROWS:
        params = _blocked(params)
        embedding_VD = params["embed"]["embedding"]
        if model.config.tied_head and _gains(embedding_VD.dtype, embedding_VD.shape[::-1]):
            blocks_nDo = block(embedding_VD, is_transposed=True)
            params["embed"] = {"embedding": BlockedEmbedding(embedding_VD, blocks_nDo)}
    return replace(model, params=params)


def _joined(node: Tree, release: bool) -> Tree:
    if not isinstance(node, dict):
        return node
    joined = {name: _joined(child, release) for name, child in node.items()}
    for names in _SIDE_BY_SIDE:
        if not all(name in node for name in names):
            continue
        if all(_is_kernel(node[name]["kernel"]) for name in names):
            first, *others = names
            kernels = [node[name]["kernel"] for name in names]
            joined[first] |= {"kernel": join(kernels)}
            for name in others:
                joined[name] |= {"kernel": InJoined()}
            if release:
                for name in names:
                    del node[name]["kernel"]
    return joined


def _is_kernel(leaf: jax.Array) -> bool:
    """Whether this is one matrix, and not a stack of those of experts."""
    return leaf.ndim == 2


def _blocked(node: Tree) -> Tree:
    if isinstance(node, JoinedKernel):
        assert not isinstance(node.kernel, BlockedKernel)
        return replace(node, kernel=_block(node.kernel))
    if isinstance(node, dict):
        return {
            name: _block(child)
            if name == "kernel" and not isinstance(child, JoinedKernel | InJoined)
            else _blocked(child)
            for name, child in node.items()
        }
    return node


def _block(kernel_IO: jax.Array) -> jax.Array | BlockedKernel:
    if not _is_kernel(kernel_IO) or not _gains(kernel_IO.dtype, kernel_IO.shape):
        return kernel_IO
    return BlockedKernel(kernel_IO, block(kernel_IO))


def _gains(dtype: jnp.dtype, shape: Shape) -> bool:
    return dtype == jnp.bfloat16 and can_block(shape)
