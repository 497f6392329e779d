"""Parameters as an Orbax checkpoint: the house's own format, sharded on both sides.

A model directory holds ``params/`` (an Orbax checkpoint of the parameter tree, quantised arrays
included) and beside it ``config.json``. The config is written last: a directory that has it is
complete. Orbax is imported only when one of these functions is called.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jax

from jaxinfer.checkpoint.directory import CONFIG_FILE
from jaxinfer.errors import CorruptCheckpoint, MissingParameters, ShapeMismatch, UnexpectedTensors
from jaxinfer.shapes import Shape, Tree

PARAMS_DIRECTORY = "params"


def is_orbax_directory(directory: Path) -> bool:
    """Whether `save_params` wrote this directory; looks at names only."""
    return (directory / PARAMS_DIRECTORY).is_dir() and (directory / CONFIG_FILE).is_file()


def save_params(
    directory: Path, params: Tree, config: dict[str, Any], *, overwrite: bool = False
) -> None:
    """Writes a parameter tree and its config; every process of a multi-host run must call it.

    Args:
        directory: the model directory; made if it is not there.
        params: a pytree of arrays; each process writes the shards it owns.
        config: what goes into ``config.json``.
        overwrite: replace parameters that are there already.

    Raises:
        FileExistsError: there are parameters and ``overwrite`` is False.
    """
    from orbax.checkpoint import v1 as ocp

    target = directory.absolute() / PARAMS_DIRECTORY
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} is there already; pass overwrite=True to replace it")
    is_writer = jax.process_index() == 0
    if is_writer:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / CONFIG_FILE).unlink(missing_ok=True)
    ocp.save(target, params, overwrite=overwrite)
    if is_writer:
        partial = directory / f".{CONFIG_FILE}.partial"
        partial.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, directory / CONFIG_FILE)


def load_params(directory: Path, abstract_params: Tree) -> Tree:
    """Reads a parameter tree onto its devices; each process reads only the shards it needs.

    Args:
        directory: a model directory that `save_params` wrote.
        abstract_params: the tree to restore, its leaves ShapeDtypeStructs; where a leaf has a
            sharding the array comes with it, elsewhere on the first device; it is cast to the
            leaf's dtype.

    Raises:
        MissingParameters, UnexpectedTensors, ShapeMismatch: the checkpoint holds another tree.
        CorruptCheckpoint: Orbax cannot read it.
    """
    from orbax.checkpoint import v1 as ocp

    path = directory.absolute() / PARAMS_DIRECTORY
    try:
        stored = _shapes(ocp.metadata(path).metadata)
    except (ValueError, OSError, KeyError, TypeError) as error:
        raise CorruptCheckpoint(f"{path} is not an Orbax checkpoint: {error}") from error
    _require_same_tree(path, wanted=_shapes(abstract_params), stored=stored)
    try:
        return ocp.load(path, jax.tree.map(_placed, abstract_params))
    except (ValueError, OSError, KeyError) as error:
        raise CorruptCheckpoint(f"{path} cannot be read: {error}") from error


def _placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The leaf with a sharding: Orbax would otherwise take the devices it was saved from."""
    if leaf.sharding is not None:
        return leaf
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)


def _shapes(tree: Tree) -> dict[str, Shape]:
    """The shape of every leaf by its path, as ``layers/0/kernel``."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }


def _require_same_tree(path: Path, *, wanted: dict[str, Shape], stored: dict[str, Shape]) -> None:
    if missing := sorted(wanted.keys() - stored.keys()):
        raise MissingParameters(f"{path} lacks {len(missing)} parameters: {', '.join(missing)}")
    if unexpected := sorted(stored.keys() - wanted.keys()):
        raise UnexpectedTensors(
            f"{path} has {len(unexpected)} arrays that no parameter takes: {', '.join(unexpected)}"
        )
    if different := sorted(name for name in wanted if wanted[name] != stored[name]):
        details = ", ".join(f"{name}: {stored[name]}, not {wanted[name]}" for name in different)
        raise ShapeMismatch(f"{path} has {len(different)} arrays of other shapes: {details}")
