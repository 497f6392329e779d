"""How parameters lie in memory: as declared, and as a platform multiplies them fastest."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

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
from jaxinfer.ops.linear import Kernel
from jaxinfer.ops.packed import can_pack, pack_embedding, pack_kernel, packing_reason
from jaxinfer.shapes import Shape, Tree
from sharding import platform_of

#: Layers that stand side by side and multiply the same input.
_SIDE_BY_SIDE = (("q", "k", "v"), ("gate", "up"), ("q", "kv_down"), ("q_down", "kv_down"))


def for_decoding(model: Model, num_slots: int, *, release: bool = False) -> Model:
    """The model with its kernels as decode steps of ``num_slots`` rows gain on one CPU or GPU.

    Kernels of the same input are joined. On a CPU those in bfloat16 are all packed, where it can
    use them so (``ops.packed``). Where it cannot, and there are few slots, all are also kept in
    blocks (``ops.blocked``), which takes the memory of the weights again: then what float32 weights
    would take.

    A blank model gives a blank one. Joining and packing copy. ``release``: ``model`` gives up its
    kernels one by one as they are copied, so that no weights lie in memory twice, and has no use
    afterwards. Without it, it stays as it is.
    """
    platform = platform_of(model.mesh)
    if platform not in ("cpu", "gpu") or model.mesh.size > 1:
        return model
    if platform == "gpu":
        return replace(model, params=_laid_out(model.params, _keep, release))
    can_be_packed = packing_reason() is None
    form = _pack if can_be_packed else _block if num_slots <= FEW_ROWS else _keep
    params = _laid_out(model.params, form, release)
    if model.config.tied_head:
        embed, embedding_VD = params["embed"], params["embed"]["embedding"]
        dtype, shape = embedding_VD.dtype, embedding_VD.shape[::-1]
        if form is _pack and can_pack(shape, dtype):
            embed["embedding"] = pack_embedding(embedding_VD)
            if release:
                del model.params["embed"]["embedding"]
        elif form is _block and _gains(dtype, shape):
            blocks_nDo = block(embedding_VD, is_transposed=True)
            embed["embedding"] = BlockedEmbedding(embedding_VD, blocks_nDo)
    return replace(model, params=params)


def layout_note(model: Model) -> str | None:
    """What to tell of how weights of 16 bits lie on one CPU, for those who wonder at its speed."""
    platform = platform_of(model.mesh)
    if platform != "cpu" or model.mesh.size > 1 or model.dtype != jnp.bfloat16:
        return None
    if model.is_packed:
        return "weights packed for this CPU"
    return f"weights not packed for this CPU: {packing_reason() or 'they are as they were given'}"


def _laid_out(node: Tree, form: Callable[[Any], Kernel], release: bool) -> Tree:
    """``node`` with its kernels joined, and each in that form."""
    if not isinstance(node, dict):
        return node
    new = {name: _laid_out(child, form, release) for name, child in node.items()}
    for names in _SIDE_BY_SIDE:
        if not all(name in node for name in names):
            continue
        if all(_is_kernel(node[name]["kernel"]) for name in names):
            first, *others = names
            kernels = [node[name]["kernel"] for name in names]
            new[first]["kernel"] = join(kernels)
            for name in others:
                new[name]["kernel"] = InJoined()
    for name, child in new.items():
        if not isinstance(child, dict) or "kernel" not in child:
            continue
        kernel: Any = child["kernel"]
        if isinstance(kernel, JoinedKernel):
            child["kernel"] = replace(kernel, kernel=form(kernel.kernel))
        elif not isinstance(kernel, InJoined) and _is_kernel(kernel):
            child["kernel"] = form(kernel)
        if release and child["kernel"] is not node[name]["kernel"]:
            del node[name]["kernel"]
    return new


def _is_kernel(leaf: jax.Array) -> bool:
    """Whether this is one matrix, and not a stack of those of experts."""
    return leaf.ndim == 2


def _keep(kernel_IO: jax.Array) -> Kernel:
    return kernel_IO


def _pack(kernel_IO: jax.Array) -> Kernel:
    return pack_kernel(kernel_IO) if can_pack(kernel_IO.shape, kernel_IO.dtype) else kernel_IO


def _block(kernel_IO: jax.Array) -> Kernel:
    if not _gains(kernel_IO.dtype, kernel_IO.shape):
        return kernel_IO
    return BlockedKernel(kernel_IO, block(kernel_IO))


def _gains(dtype: jnp.dtype, shape: Shape) -> bool:
    return dtype == jnp.bfloat16 and can_block(shape)
