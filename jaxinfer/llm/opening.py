"""From what a user calls a model to its config, its tokenizer, and its weights when asked for."""

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from jaxinfer.checkpoint.directory import read_config
from jaxinfer.checkpoint.gguf import GgufSource
from jaxinfer.checkpoint.known import KNOWN_MODELS
from jaxinfer.checkpoint.load import Progress
from jaxinfer.checkpoint.orbax import is_orbax_directory
from jaxinfer.checkpoint.resolve import expanded, resolve_model
from jaxinfer.checkpoint.source import Source, open_source
from jaxinfer.config import ModelConfig
from jaxinfer.errors import InvalidParameter, ModelNotFound
from jaxinfer.models.loading import random_weights, read_weights, restore_weights
from jaxinfer.models.model import Model, blank_model
from jaxinfer.models.registry import model_config
from jaxinfer.models.tied_head import checkpoint_config
from jaxinfer.presets import config_names, find_config
from jaxinfer.tokenizer import Tokenizer, load_tokenizer

LOAD_FORMATS = ("auto", "dummy")

#: Matrices stored so are computed with as they are; every other storage is quantised.
_PLAIN_STORAGE = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class OpenModel:
    """A model found, with nothing of its weights read yet.

    Attributes:
        config: what it is made of; ``config.dtype`` is what dtype "auto" means for it.
        source: its weights; None for a model of random ones, and for an Orbax checkpoint.
        orbax: the directory of an Orbax checkpoint.
        tokenizer: None where it has none, or none was wanted.
    """

    config: ModelConfig
    source: Source | None
    tokenizer: Tokenizer | None
    orbax: Path | None = None

    def blank(
        self, *, mesh: Mesh, dtype: str, max_len: int | None, room: int | None = None
    ) -> Model:
        """The shapes of its weights; for parameters and errors see ``blank_model``."""
        return blank_model(self.config, mesh=mesh, dtype=dtype, max_len=max_len, room=room)

    def load(self, blank: Model, *, seed: int, progress: Progress) -> Model:
        """``blank`` with its weights, on their devices; ``seed`` is for random ones.

        Raises:
            CheckpointError: files that do not fit the architecture.
        """
        if self.orbax is not None:
            return restore_weights(blank, self.orbax)
        if self.source is None:
            return random_weights(blank, seed)
        return read_weights(blank, self.source, progress)

    def close(self) -> None:
        """Lets go of the files."""
        if self.source is not None:
            self.source.close()


def open_model(
    model: str | Path,
    *,
    tokenizer: str | Path | Tokenizer | None = None,
    skip_tokenizer: bool = False,
    load_format: str = "auto",
) -> OpenModel:
    """Finds a model, fetching it first if it has to come from elsewhere.

    Args:
        model: a directory, a ``.gguf`` file, a hub id, or a known small name; with ``load_format``
            "dummy" a name from ``configs/models``, or a directory with a ``config.json``.
        tokenizer: one that is there already, or where to take another than the model's own.

    Raises:
        ModelNotFound, CheckpointError, ConfigError, TokenizerError: what is wrong with it.
        InvalidParameter: an unknown ``load_format``.
    """
    if load_format not in LOAD_FORMATS:
        raise InvalidParameter(f"load_format = {load_format!r} must be {' or '.join(LOAD_FORMATS)}")
    orbax: Path | None = None
    source: Source | None = None
    with ExitStack() as on_error:
        if load_format == "dummy":
            path = expanded(model)
            config = model_config(_config_only(model, path))
        else:
            if is_architecture(model):
                raise ModelNotFound(
                    f"{str(model)!r} is the name of an architecture, of which there are no weights"
                    " here: give a directory that holds some, or take random ones with"
                    " load_format = 'dummy' (--load-format dummy)"
                )
            path = resolve_model(model)
            if path.is_dir() and is_orbax_directory(path):
                orbax = path
                config = model_config(read_config(path))
            else:
                source = on_error.enter_context(open_source(path))
                config = _with_stored_dtype(checkpoint_config(source), source)
        found = None
        if isinstance(tokenizer, Tokenizer):
            found = tokenizer
        elif not skip_tokenizer:
            found = _find_tokenizer(path, source) if tokenizer is None else _tokenizer_at(tokenizer)
        on_error.pop_all()  # from here on, who asked for it closes it
        return OpenModel(config=config, source=source, tokenizer=found, orbax=orbax)


def is_architecture(model: str | Path) -> bool:
    """Whether it is a name of ``configs/models``, and not one of a model that can be had."""
    name = str(model)
    return name in config_names() and name not in KNOWN_MODELS and not expanded(model).exists()


def _config_only(model: str | Path, path: Path) -> Mapping[str, Any]:
    if path.is_dir():
        return read_config(path)
    if str(model) not in config_names():
        raise ModelNotFound(
            f"no model {str(model)!r} to make with random weights: neither a directory with a "
            f"config.json, nor one of {', '.join(config_names())}"
        )
    return find_config(str(model))


def _with_stored_dtype(config: ModelConfig, source: Source) -> ModelConfig:
    """A GGUF file names no dtype: it is the one of most matrices, bfloat16 for quantised ones."""
    if not isinstance(source, GgufSource):
        return config
    storages = Counter(info.storage for info in source.tensors.values() if len(info.shape) > 1)
    [(storage, _)] = storages.most_common(1) or [("", 0)]
    return replace(config, dtype=_PLAIN_STORAGE.get(storage, "bfloat16"))


def _find_tokenizer(path: Path, source: Source | None) -> Tokenizer | None:
    """The model's own; one of random weights may have none."""
    if source is None:
        return load_tokenizer(path) if (path / "tokenizer.json").is_file() else None
    return load_tokenizer(path, metadata=getattr(source, "metadata", None))


def _tokenizer_at(place: str | Path) -> Tokenizer:
    path = expanded(place)
    if path.is_dir():
        return load_tokenizer(path)
    path = resolve_model(place)
    if path.suffix != ".gguf":
        return load_tokenizer(path)
    with closing(GgufSource(path)) as source:
        return load_tokenizer(path, metadata=source.metadata)
