"""Meshes and names: logical axes of arrays, a table to mesh axes, shardings for whole trees.

A leaf: it knows arrays and devices, never a model or a request. See README.md beside this file.
"""

from sharding.mesh import make_mesh, platform_of
from sharding.rules import DEFAULT_RULES, LogicalAxes, MeshAxis, Rules, spec
from sharding.tree import device_bytes, named_sharding, tree_shardings

__all__ = [
    "DEFAULT_RULES",
    "LogicalAxes",
    "MeshAxis",
    "Rules",
    "device_bytes",
    "make_mesh",
    "named_sharding",
    "platform_of",
    "spec",
    "tree_shardings",
]
