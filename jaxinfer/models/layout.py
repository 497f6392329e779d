"""How parameters lie in memory: as declared, and as a platform multiplies a few rows fastest."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxinfer.models.loading import Model
from jaxinfer.ops.blocked import (
    FEW_ROWS,
    BlockedEmbedding,
    BlockedKernel,
    block,
    can_block,
)
from jaxinfer.shapes import Tree


def for_decoding(model: Model, num_slots: int) -> Model:
    """The model with its kernels also in blocks where decode steps of ``num_slots`` rows gain.

    That is on one CPU, in bfloat16, with few slots. It takes the memory of the weights again, which
    is then what float32 weights would take.
    """
    platform = model.mesh.devices.flat[0].platform
    if platform != "cpu" or model.mesh.size > 1 or num_slots > FEW_ROWS:
        return model
    params = _blocked(model.params)
    embedding_VD = params["embed"]["embedding"]
    if model.config.tied_head and _gains(embedding_VD.T):
        params["embed"] = {"embedding": BlockedEmbedding(embedding_VD, block(embedding_VD.T))}
    return replace(model, params=params)


def _blocked(node: Tree) -> Tree:
    if isinstance(node, dict):
        return {
            name: BlockedKernel(child, block(child))
            if name == "kernel" and _gains(child)
            else _blocked(child)
            for name, child in node.items()
        }
    return node


def _gains(kernel_IO: jax.Array) -> bool:
    return kernel_IO.dtype == jnp.bfloat16 and can_block(kernel_IO.shape)
