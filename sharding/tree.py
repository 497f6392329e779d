"""Shardings for arrays and for whole trees of them."""

import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from sharding.rules import DEFAULT_RULES, LogicalAxes, Rules, mesh_axes, spec


def named_sharding(
    mesh: Mesh,
    shape: tuple[int, ...],
    axes: LogicalAxes,
    rules: Rules = DEFAULT_RULES,
    *,
    name: str = "array",
) -> NamedSharding:
    """Where each part of one array lives.

    Args:
        mesh: the devices.
        shape: the array's shape.
        axes: its logical axes, one a dimension.
        rules: where each logical axis goes.
        name: what the array is called, for the error.

    Raises:
        ValueError: more or fewer names than dimensions, whatever ``spec`` refuses, a rule to an
            axis that the mesh does not have, or a size that does not divide by its devices.
    """
    if len(axes) != len(shape):
        raise ValueError(
            f"{name}: {len(axes)} logical axes {axes} for the {len(shape)} of shape {shape}"
        )
    partition = spec(axes, rules, name=name)
    for axis, size, rule in zip(axes, shape, partition, strict=True):
        absent = [mesh_axis for mesh_axis in mesh_axes(rule) if mesh_axis not in mesh.shape]
        if absent:
            raise ValueError(
                f"{name}: {axis!r} goes to {absent}, and the mesh has {list(mesh.shape)}: "
                "add the axis to the mesh, or change the rule"
            )
        parts = math.prod(mesh.shape[mesh_axis] for mesh_axis in mesh_axes(rule))
        if size % parts:
            raise ValueError(
                f"{name}: {axis!r} of size {size} does not divide over {parts} devices of mesh axis"
                f" {rule!r}: use a mesh whose {rule!r} divides {size}, or keep the axis whole with"
                f" rules | {{{axis!r}: None}}"
            )
    return NamedSharding(mesh, partition)


def device_bytes(arrays: Any) -> int:
    """Bytes that one device holds of a tree of arrays: its part of each, all of what is replicated.

    ``arrays``: a pytree of arrays, or of ShapeDtypeStructs with a sharding.
    """
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(arrays)
    )


def tree_shardings(shapes: Any, axes: Any, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> Any:
    """The tree of NamedShardings for a tree of arrays.

    Args:
        shapes: a pytree of anything with a ``shape``: arrays or ShapeDtypeStructs.
        axes: the same tree with each array's logical axes in its place.
        mesh: the devices.
        rules: where each logical axis goes.

    Raises:
        ValueError: what ``named_sharding`` refuses, for all arrays together; or trees that differ.
    """
    reasons: list[str] = []

    def place(path: tuple[Any, ...], array: Any, array_axes: LogicalAxes) -> NamedSharding | None:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        try:
            return named_sharding(mesh, tuple(array.shape), array_axes, rules, name=name)
        except ValueError as error:
            reasons.append(str(error))
            return None

    shardings = jax.tree.map_with_path(place, shapes, axes)
    if reasons:
        raise ValueError("\n".join(reasons))
    return shardings
