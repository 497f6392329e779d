"""A model ready to run: its config, its graph, and its parameters on their devices."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jaxinfer.checkpoint.directory import read_config
from jaxinfer.checkpoint.load import Progress, load_params, no_progress
from jaxinfer.checkpoint.orbax import load_params as restore_params
from jaxinfer.checkpoint.orbax import save_params
from jaxinfer.checkpoint.source import Source
from jaxinfer.config import ModelConfig
from jaxinfer.errors import CapacityError, ConfigError, InvalidParameter
from jaxinfer.layers.parameter import OneKey
from jaxinfer.models.decoder import Decoder
from jaxinfer.models.registry import family_for, model_config
from jaxinfer.models.weights import recipes
from jaxinfer.ops.blocked import BlockedEmbedding, BlockedKernel
from jaxinfer.shapes import Tree
from sharding import device_bytes, named_sharding

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class Model:
    """``params`` is a nested dict of arrays, or of what ``layout`` made of them; compiled programs
    close over ``graph``.

    ``merge(params)`` gives the ``Decoder``, inside a traced function.
    """

    config: ModelConfig
    graph: nnx.GraphDef
    params: Tree
    mesh: Mesh
    dtype: jnp.dtype
    max_len: int

    def merge(self, params: Tree) -> Decoder:
        return nnx.merge(self.graph, params)

    @property
    def num_params(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.params))

    @property
    def is_blocked(self) -> bool:
        """Whether ``layout.for_decoding`` gave some kernels a second form."""
        kinds = (BlockedKernel, BlockedEmbedding)
        leaves = jax.tree.leaves(self.params, is_leaf=lambda node: isinstance(node, kinds))
        return any(isinstance(leaf, kinds) for leaf in leaves)

    @property
    def weight_bytes(self) -> int:
        """Each weight once, on however many devices it lies."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.params))

    @property
    def device_weight_bytes(self) -> int:
        """What one device holds."""
        return device_bytes(self.params)


def load_model(
    source: Source,
    *,
    mesh: Mesh,
    dtype: str = "auto",
    max_len: int | None = None,
    room: int | None = None,
    progress: Progress = no_progress,
) -> Model:
    """Reads a checkpoint into a model.

    ``dtype`` "auto" is the checkpoint's own. ``max_len`` None is the longest context the model was
    made for. ``room``: bytes of each device that may be used, None for no bound.

    Raises:
        ConfigError: an architecture or a field that is not known.
        CheckpointError: files that do not fit the architecture.
        InvalidParameter: a dtype or a length that is not allowed.
        CapacityError: more weights than ``room``; nothing was read then.
    """
    family = family_for(source.config)
    config = family.translate(source.config)
    blank = _blank(config, mesh, dtype, max_len)
    wanted = _wanted(blank, room)
    names = {path: _name(path) for path in wanted}
    filled = load_params(
        source,
        recipes(family, config, source.tensors),
        {names[path]: leaf for path, leaf in wanted.items()},
        is_ignored=lambda name: family.ignores(family.canonical_name(name)),
        progress=progress,
    )
    return replace(blank, params=_nested({path: filled.pop(name) for path, name in names.items()}))


def save_model(
    model: Model, directory: Path, config: dict[str, Any], *, overwrite: bool = False
) -> None:
    """Writes a model as an Orbax checkpoint; ``config`` is its ``config.json``.

    Raises:
        FileExistsError: there is one already and ``overwrite`` is False.
    """
    save_params(directory, model.params, config, overwrite=overwrite)


def restore_model(
    directory: Path,
    *,
    mesh: Mesh,
    dtype: str = "auto",
    max_len: int | None = None,
    room: int | None = None,
) -> Model:
    """Reads what ``save_model`` wrote, each shard onto its own device.

    Raises:
        ConfigError, CheckpointError, InvalidParameter, CapacityError: as ``load_model``.
    """
    blank = _blank(model_config(read_config(directory)), mesh, dtype, max_len)
    wanted = _nested(_wanted(blank, room))
    return replace(blank, params=restore_params(directory, wanted))


def dummy_model(
    config: ModelConfig,
    *,
    mesh: Mesh,
    dtype: str = "auto",
    max_len: int | None = None,
    room: int | None = None,
    seed: int = 0,
) -> Model:
    """A model of this shape with random weights, made on its devices.

    Raises:
        ConfigError, InvalidParameter, CapacityError: as ``load_model``.
    """
    blank = _blank(config, mesh, dtype, max_len)
    shardings = {path: leaf.sharding for path, leaf in _wanted(blank, room).items()}

    def initial() -> dict[tuple, jax.Array]:
        decoder = Decoder(
            config, dtype=blank.dtype, max_len=blank.max_len, mesh=mesh, rngs=nnx.Rngs(seed)
        )
        return {path: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(decoder))}

    return replace(blank, params=_nested(jax.jit(initial, out_shardings=shardings)()))


def _blank(config: ModelConfig, mesh: Mesh, dtype: str, max_len: int | None) -> Model:
    """The model with shapes in the place of its parameters."""
    model_dtype = jnp.dtype(_checked_dtype(dtype, config))
    length = _checked_len(max_len, config)
    decoder = nnx.eval_shape(
        lambda: Decoder(config, dtype=model_dtype, max_len=length, mesh=mesh, rngs=OneKey())
    )
    graph, shapes = nnx.split(decoder)
    return Model(
        config=config, graph=graph, params=shapes, mesh=mesh, dtype=model_dtype, max_len=length
    )


def _checked_dtype(dtype: str, config: ModelConfig) -> str:
    if dtype != "auto" and dtype not in DTYPES:
        raise InvalidParameter(f"dtype = {dtype!r} must be auto, {', '.join(DTYPES)}")
    return config.dtype if dtype == "auto" else dtype


def _checked_len(max_len: int | None, config: ModelConfig) -> int:
    if max_len is None:
        return config.max_len
    if not 2 <= max_len <= config.max_len:
        raise InvalidParameter(
            f"max_model_len = {max_len} must be between 2 and the {config.max_len} tokens that"
            " this model was made for"
        )
    return max_len


def _wanted(blank: Model, room: int | None) -> dict[tuple, jax.ShapeDtypeStruct]:
    """Shape, dtype and sharding of each parameter, by its path; refused where there is no room."""
    wanted = {
        path: _placed(_name(path), variable, blank.mesh)
        for path, variable in nnx.to_flat_state(blank.params)
    }
    need = device_bytes(list(wanted.values()))
    if room is not None and need > room:
        raise CapacityError(
            f"the weights take {need:,} bytes of each device in {blank.dtype.name}, and {room:,}"
            " may be used: take a smaller model or dtype, more devices along the model axis, or a"
            " larger memory_utilization"
        )
    return wanted


def _name(path: tuple) -> str:
    return ".".join(map(str, path))


def _placed(name: str, variable: nnx.Variable, mesh: Mesh) -> jax.ShapeDtypeStruct:
    """Shape, dtype and sharding of a parameter, from the axes it declares."""
    leaf, axes = variable.get_value(), variable.get_metadata("axes")
    try:
        sharding = named_sharding(mesh, leaf.shape, axes, name=name)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _nested(flat: Mapping[tuple, Any]) -> Tree:
    """Paths as nested dicts, the form that ``Model.merge`` takes."""
    root: dict = {}
    for path, leaf in flat.items():
        node = root
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return root
