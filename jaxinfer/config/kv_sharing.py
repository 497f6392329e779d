"""Layers that read the keys and values of an earlier one (CLA, arXiv 2405.12981)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from jaxinfer.config.attention import AttentionSpec
from jaxinfer.config.checks import require

if TYPE_CHECKING:
    from jaxinfer.config.model import LayerSpec


def shared_kv(layers: Sequence["LayerSpec"], factor: int) -> tuple["LayerSpec", ...]:
    """The layers, of which each ``factor`` consecutive ones read the pages of their first.

    2 is CLA2 of the paper, 3 CLA3; 1 shares nothing. Where ``factor`` does not divide the layers,
    the last run is shorter.
    """
    require(factor >= 1, "kv_sharing_factor", factor, "1 or more")
    return tuple(
        layer if i % factor == 0 else replace(layer, kv_from=i - i % factor)
        for i, layer in enumerate(layers)
    )


def check_kv_from(layers: Sequence["LayerSpec"]) -> None:
    """Raises ``ConfigError`` where a ``kv_from`` names no earlier layer with pages that fit."""
    for i, layer in enumerate(layers):
        if layer.kv_from is None:
            continue
        field, owner = f"kv_from of layer {i}", layer.kv_from
        is_index = isinstance(owner, int) and not isinstance(owner, bool)
        require(is_index and 0 <= owner < i, field, owner, "the number of an earlier layer")
        has_pages = layers[owner].kv_from is None
        allowed = f"a layer with pages of its own, as layer {owner} reads those of another"
        require(has_pages, field, owner, allowed)
        mixers = (layer.mixer, layers[owner].mixer)
        has_kv = all(isinstance(mixer, AttentionSpec) for mixer in mixers)
        require(has_kv, field, owner, "used between layers that hold keys and values")
        for name in ("num_kv_heads", "head_dim", "window", "chunk"):
            wanted, found = (getattr(mixer, name) for mixer in mixers)
            allowed = f"a layer with {name} = {wanted}, and layer {owner} has {found}"
            require(wanted == found, field, owner, allowed)
