"""Fills a blank model: from a checkpoint, from an Orbax directory, or with random numbers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from jaxinfer.checkpoint.directory import read_config
from jaxinfer.checkpoint.load import Progress, load_params, no_progress
from jaxinfer.checkpoint.orbax import load_params as restore_params
from jaxinfer.checkpoint.orbax import save_params
from jaxinfer.checkpoint.source import Source
from jaxinfer.config import ModelConfig
from jaxinfer.models.decoder import Decoder
from jaxinfer.models.model import Model, blank_model, flat, nested, path_name
from jaxinfer.models.registry import family_for, model_config
from jaxinfer.models.tied_head import checkpoint_config
from jaxinfer.models.weights import recipes


def read_weights(blank: Model, source: Source, progress: Progress = no_progress) -> Model:
    """``blank`` with the weights of a checkpoint.

    Raises:
        CheckpointError: files that do not fit the architecture.
    """
    family = family_for(source.config)
    wanted = flat(blank.params)
    names = {path: path_name(path) for path in wanted}
    filled = load_params(
        source,
        recipes(family, blank.config, source.tensors),
        {names[path]: leaf for path, leaf in wanted.items()},
        is_ignored=lambda name: family.ignores(family.canonical_name(name)),
        progress=progress,
    )
    return replace(blank, params=nested({path: filled.pop(name) for path, name in names.items()}))


def restore_weights(blank: Model, directory: Path) -> Model:
    """``blank`` with what ``save_model`` wrote, each shard read onto its own device.

    Raises:
        CheckpointError: files that do not fit the architecture.
    """
    return replace(blank, params=restore_params(directory, blank.params))


def random_weights(blank: Model, seed: int = 0) -> Model:
    """``blank`` with random weights, made on its devices."""
    shardings = {path: leaf.sharding for path, leaf in flat(blank.params).items()}

    def initial() -> dict[tuple, jax.Array]:
        decoder = Decoder(
            blank.config,
            dtype=blank.dtype,
            max_len=blank.max_len,
            mesh=blank.mesh,
            rngs=nnx.Rngs(seed),
        )
        return {path: leaf.get_value() for path, leaf in nnx.to_flat_state(nnx.state(decoder))}

    return replace(blank, params=nested(jax.jit(initial, out_shardings=shardings)()))


def load_model(
    source: Source,
    *,
    mesh: Mesh,
    dtype: str = "auto",
    max_len: int | None = None,
    room: int | None = None,
    progress: Progress = no_progress,
) -> Model:
    """The model of a checkpoint. For parameters see ``blank_model``.

    Raises:
        ConfigError: an architecture or a field that is not known.
        CheckpointError: files that do not fit the architecture.
        InvalidParameter, CapacityError: as ``blank_model``; nothing was read then.
    """
    config = checkpoint_config(source)
    blank = blank_model(config, mesh=mesh, dtype=dtype, max_len=max_len, room=room)
    return read_weights(blank, source, progress)


def save_model(
    model: Model, directory: Path, config: dict[str, Any], *, overwrite: bool = False
) -> None:
    """Writes a model as an Orbax checkpoint; ``config`` is its ``config.json``.

    What the latter says of a tied head is put right where the checkpoint had another one.

    Raises:
        FileExistsError: there is one already and ``overwrite`` is False.
    """
    if model_config(config).tied_head != model.config.tied_head:
        config = config | {"tie_word_embeddings": model.config.tied_head}
    save_params(directory, model.params, config, overwrite=overwrite)


def restore_model(
    directory: Path,
    *,
    mesh: Mesh,
    dtype: str = "auto",
    max_len: int | None = None,
    room: int | None = None,
) -> Model:
    """The model that ``save_model`` wrote.

    Raises:
        ConfigError, CheckpointError, InvalidParameter, CapacityError: as ``load_model``.
    """
    config = model_config(read_config(directory))
    blank = blank_model(config, mesh=mesh, dtype=dtype, max_len=max_len, room=room)
    return restore_weights(blank, directory)


def dummy_model(
    config: ModelConfig,
    *,
    mesh: Mesh,
    dtype: str = "auto",
    max_len: int | None = None,
    room: int | None = None,
    seed: int = 0,
) -> Model:
    """A model of this shape with random weights.

    Raises:
        ConfigError, InvalidParameter, CapacityError: as ``blank_model``.
    """
    blank = blank_model(config, mesh=mesh, dtype=dtype, max_len=max_len, room=room)
    return random_weights(blank, seed)
