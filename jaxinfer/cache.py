"""The paged cache: layers in groups, one page table a group, one pool a layer.

Layers whose pages hold the same kind of thing equally long share a group: all layers with full
attention are one, all with latent attention are one, and all with the same sliding window are one,
or with chunks of that size.
A group's layers use the same page ids; each layer has its own pool array, so that no layer is ever
sliced out of a stacked one. A layer that reads another one's keys and values
(``LayerSpec.kv_from``) belongs to that layer's group and has no pool.
"""

import math
from dataclasses import dataclass
from typing import Literal

import jax
from jax.sharding import Mesh, NamedSharding

from jaxinfer.config import LatentSpec, MixerSpec, ModelConfig
from jaxinfer.errors import ConfigError
from pallas_kernels import (
    KVPages,
    LatentPages,
    copy_kv_pages,
    init_kv_pages,
    init_latent_pages,
    kv_pages_spec,
    latent_pages_spec,
)
from pallas_kernels.latent_attention import page_sizes as latent_page_sizes
from pallas_kernels.ragged_paged_attention import page_sizes
from sharding import DEFAULT_RULES
from sharding.rules import mesh_axes

#: The kinds of groups, in the order in which they stand.
_KINDS = ("full", "latent", "window")

#: The pages of one layer: of keys and values, or of latents.
Pages = KVPages | LatentPages
#: The cache: one pool a layer, in the order of the layers; None where a layer reads another's.
Cache = tuple[Pages | None, ...]


@dataclass(frozen=True, kw_only=True)
class LayerGroup:
    """Layers that share page ids. ``window``: how many tokens must stay, None for all."""

    kind: Literal["full", "latent", "window"]
    window: int | None
    layers: tuple[int, ...]


def layer_groups(config: ModelConfig) -> tuple[LayerGroup, ...]:
    """The groups of a model: those that keep all tokens first, then windows from wide to narrow."""
    members: dict[tuple, list[int]] = {}
    for index, layer in enumerate(config.layers):
        members.setdefault((layer.mixer.cache_kind, layer.mixer.reach), []).append(index)
    ordered = sorted(members, key=lambda group: (_KINDS.index(group[0]), -(group[1] or 0)))
    return tuple(
        LayerGroup(kind=kind, window=window, layers=tuple(members[kind, window]))
        for kind, window in ordered
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
    mixers = {layer.mixer for layer in config.layers}
    return tuple(sorted(set.intersection(*(set(_fast_sizes(mixer, dtype)) for mixer in mixers))))


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
        _new_pages(layer.mixer, num_pages[group], page_size, dtype)
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
        # To it, a pool of latents is one of keys and values with a single head.
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


def page_shardings(config: ModelConfig, mesh: Mesh) -> tuple[NamedSharding, ...]:
    """Where each layer's pages are: the sharding of every leaf of its pool.

    Heads are split as the rules say, and whole along all axes that the rules do not name. Latents
    belong to all heads: they are whole everywhere.

    Raises:
        ConfigError: as ``head_axes``.
    """
    return tuple(_sharding(layer.mixer, mesh) for layer in config.layers)


def head_axes(mixer: MixerSpec, mesh: Mesh) -> tuple[str, ...]:
    """The mesh axes over which a mixer's heads are split, as many on each device.

    Raises:
        ConfigError: they do not divide.
    """
    name = "heads" if isinstance(mixer, LatentSpec) else "kv_heads"
    axes = mesh_axes(DEFAULT_RULES[name])
    parts = math.prod(mesh.shape[axis] for axis in axes)
    if mixer.split_heads % parts:
        raise ConfigError(
            f"num_{name} = {mixer.split_heads} does not divide over {parts} devices of mesh axes"
            f" {axes}: use a mesh whose model axis divides it"
        )
    return axes


# What differs between the kinds of pages stands here, and nowhere else above the layers.


def _new_pages(
    mixer: MixerSpec, num_pages: int, page_size: int, dtype: jax.typing.DTypeLike
) -> Pages:
    if isinstance(mixer, LatentSpec):
        return init_latent_pages(num_pages, page_size, mixer.kv_rank, mixer.rope_dim, dtype)
    return init_kv_pages(num_pages, page_size, mixer.num_kv_heads, mixer.head_dim, dtype)


def _fast_sizes(mixer: MixerSpec, dtype: jax.typing.DTypeLike) -> tuple[int, ...]:
    if isinstance(mixer, LatentSpec):
        return latent_page_sizes(mixer.kv_rank, mixer.rope_dim, dtype)
    sizes = page_sizes(mixer.head_dim, dtype)
    return tuple(size for size in sizes if (mixer.chunk or 0) % size == 0)


def _sharding(mixer: MixerSpec, mesh: Mesh) -> NamedSharding:
    axes = head_axes(mixer, mesh)
    is_latent = isinstance(mixer, LatentSpec)
    return NamedSharding(mesh, latent_pages_spec(axes) if is_latent else kv_pages_spec(axes))
