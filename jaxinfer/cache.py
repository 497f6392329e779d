"""The paged KV pytree: layers in groups, one page table a group, one pool a layer.

Layers whose pages live equally long share a group: all full-attention layers are one, and all
layers with the same sliding window are one. A group's layers use the same page ids; each layer has
its own pool array, so that no layer is ever sliced out of a stacked one. A layer that reads another
one's keys and values (``LayerSpec.kv_from``) belongs to that layer's group and has no pool.
"""

from dataclasses import dataclass
from typing import Literal

import jax

from jaxinfer.config import ModelConfig
from pallas_kernels import KVPages, copy_kv_pages, init_kv_pages
from pallas_kernels.ragged_paged_attention import page_sizes


@dataclass(frozen=True, kw_only=True)
class LayerGroup:
    """Layers that share page ids. ``window``: how many tokens must stay, None for all."""

    kind: Literal["full", "window"]
    window: int | None
    layers: tuple[int, ...]


#: The cache: one pool a layer, in the order of the layers; None where a layer reads another's.
Cache = tuple[KVPages | None, ...]


def layer_groups(config: ModelConfig) -> tuple[LayerGroup, ...]:
    """The groups of a model: the full-attention one first, then windows from wide to narrow."""
    members: dict[int | None, list[int]] = {}
    for index, layer in enumerate(config.layers):
        members.setdefault(layer.mixer.window, []).append(index)
    windows = sorted(members, key=lambda window: (window is not None, -(window or 0)))
    return tuple(
        LayerGroup(
            kind="full" if window is None else "window",
            window=window,
            layers=tuple(members[window]),
        )
        for window in windows
    )


def group_of_layer(config: ModelConfig) -> tuple[int, ...]:
    """For each layer, the index of its group."""
    owner = {
        layer: index for index, group in enumerate(layer_groups(config)) for layer in group.layers
    }
    return tuple(owner[layer] for layer in range(len(config.layers)))


def fast_page_sizes(config: ModelConfig, dtype: jax.typing.DTypeLike) -> tuple[int, ...]:
    """Tokens a page, ascending, with which the best attention for the chip serves every layer.

    The chip is that of the mesh which is set (``jax.set_mesh``), else of JAX's default backend.
    """
    kinds = {(layer.mixer.num_kv_heads, layer.mixer.head_dim) for layer in config.layers}
    return tuple(sorted(set.intersection(*(set(page_sizes(*kind, dtype)) for kind in kinds))))


def init_cache(
    config: ModelConfig,
    num_pages: tuple[int, ...],
    page_size: int,
    dtype: jax.typing.DTypeLike,
) -> Cache:
    """Empty pools, laid out for the chip of the mesh which is set.

    ``num_pages``: one count a group, page 0 (never owned) included.
    """
    groups = group_of_layer(config)
    return tuple(
        init_kv_pages(
            num_pages[group], page_size, layer.mixer.num_kv_heads, layer.mixer.head_dim, dtype
        )
        if layer.kv_from is None
        else None
        for group, layer in zip(groups, config.layers, strict=True)
    )


def copy_pages(
    config: ModelConfig, cache: Cache, source_GC: jax.Array, target_GC: jax.Array
) -> Cache:
    """Copies up to C pages in each group, in every layer of it; a pair of zeros copies nothing."""
    groups = group_of_layer(config)
    return tuple(
        None if pages is None else copy_kv_pages(pages, source_GC[group], target_GC[group])
        for group, pages in zip(groups, cache, strict=True)
    )


def layer_page_bytes(
    config: ModelConfig, page_size: int, dtype: jax.typing.DTypeLike
) -> tuple[int, ...]:
    """Bytes of one page of each layer, as ``init_cache`` allocates it; 0 where none is owned."""
    one_each = (1,) * len(layer_groups(config))
    pools = jax.eval_shape(lambda: init_cache(config, one_each, page_size, dtype))
    return tuple(
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(pages)) for pages in pools
    )


def page_bytes(config: ModelConfig, page_size: int, dtype: jax.typing.DTypeLike) -> tuple[int, ...]:
    """Bytes of one page of each group, over all layers of the group."""
    sizes = layer_page_bytes(config, page_size, dtype)
    return tuple(sum(sizes[i] for i in group.layers) for group in layer_groups(config))
