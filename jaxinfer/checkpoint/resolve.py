"""From what a user calls a model to the directory or file that holds it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from jaxinfer.checkpoint.directory import CONFIG_FILE
from jaxinfer.checkpoint.known import KNOWN_MODELS, pull
from jaxinfer.checkpoint.orbax import is_orbax_directory
from jaxinfer.checkpoint.pip_download import Progress
from jaxinfer.errors import ModelNotFound

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
#: Configs, weights, tokenizers and chat templates; no code and no other formats of the same
#: weights.
_HUB_FILES = ["*.json", "*.safetensors", "tokenizer.model", "merges.txt", "*.jinja"]
_HUB_IGNORED = ["*/*", "consolidated*.safetensors"]


def resolve_model(
    model: str | Path,
    *,
    progress: Progress | None = None,
    show_notice: Callable[[str], None] | None = None,
) -> Path:
    """Finds a model, fetching it if it has to come from elsewhere.

    Args:
        model: a directory (Hugging Face or Orbax), a ``.gguf`` file, a known small name, or a hub
            id ``org/name``; tried in this order.
        progress, show_notice: as for `known.pull`.

    Raises:
        ModelNotFound: nothing of that name; the message says what was tried and what is known.
        CorruptCheckpoint, CapacityError: as for `known.pull`.
    """
    path = expanded(model)
    if path.is_dir():
        return _checked_directory(path)
    if path.is_file():
        return _checked_file(path)
    name = str(model)
    if name in KNOWN_MODELS:
        return pull(name, progress=progress, show_notice=show_notice)
    if _HUB_ID.fullmatch(name):
        return _checked_directory(_from_hub(name))
    raise ModelNotFound(
        f"no model {name!r}: no such directory or .gguf file, not of the form of a hub id "
        f"(org/name), and not one of the known names ({', '.join(KNOWN_MODELS)})"
    )


def expanded(path: str | Path) -> Path:
    """The path with ``~`` and ``~user`` replaced by home directories.

    Raises:
        ModelNotFound: there is no such user, or no home directory.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ModelNotFound(
            f"no model {str(path)!r}: {error} Give a path that does not begin with ~"
        ) from error


def _checked_directory(directory: Path) -> Path:
    if is_orbax_directory(directory):
        return directory
    lacks = [
        pattern for pattern in (CONFIG_FILE, "*.safetensors") if not any(directory.glob(pattern))
    ]
    if lacks:
        raise ModelNotFound(
            f"{directory} is no model directory: it has no {' and no '.join(lacks)}"
        )
    return directory


def _checked_file(path: Path) -> Path:
    if path.suffix != ".gguf":
        raise ModelNotFound(
            f"{path} is not a .gguf file; for safetensors give the directory they are in"
        )
    return path


def _from_hub(name: str) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ModelNotFound(
            f"no directory {name!r}, and to fetch it as a hub id huggingface_hub must be installed"
        ) from error
    try:
        folder = huggingface_hub.snapshot_download(
            name, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_IGNORED
        )
    # The hub's client raises its own, its HTTP library's and the system's errors.
    except Exception as error:
        raise ModelNotFound(
            f"no directory {name!r}, and as a hub id it cannot be fetched: {error}"
        ) from error
    return Path(folder)
