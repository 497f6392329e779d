"""What is known by name: the files of ``configs``, architectures and ways to serve.

The folder ``configs`` is data. A wheel carries it inside this package; in a checkout it stands
beside it.
"""

import tomllib
from pathlib import Path
from typing import Any

from jaxinfer.errors import InvalidParameter, ModelNotFound

_PACKAGE = Path(__file__).parent
_PLACES = (_PACKAGE / "configs", _PACKAGE.parent / "configs")


def config_names() -> tuple[str, ...]:
    """The names that ``find_config`` knows, in alphabetical order."""
    return tuple(sorted(_files("models")))


def find_config(name: str) -> dict[str, Any]:
    """The fields of a Hugging Face ``config.json``, for a name such as ``"llama-3.1-8b"``.

    Raises:
        ModelNotFound: no architecture of that name; the message lists those that exist.
    """
    files = _files("models")
    if name not in files:
        raise ModelNotFound(
            f"no architecture is called {name!r}; there are {', '.join(sorted(files))}"
        )
    fields = tomllib.loads(files[name].read_text(encoding="utf-8"))
    # TOML has no null, which is not the same as a field that is left out.
    return fields | dict.fromkeys(fields.pop("null", ()))


def find_serve_config(name: str) -> Path:
    """The file of settings for a server: one that is there, or one of ``configs/serve`` by name.

    Raises:
        InvalidParameter: neither; the message lists the names that exist.
    """
    path = Path(name).expanduser()
    if "\0" not in name and path.is_file():
        return path
    files = _files("serve")
    if name not in files:
        raise InvalidParameter(
            f"config = {name!r} is not allowed: it must be a file, or one of"
            f" {', '.join(sorted(files))}"
        )
    return files[name]


def _files(folder: str) -> dict[str, Path]:
    configs = next(place for place in _PLACES if place.is_dir())
    return {path.stem: path for path in (configs / folder).glob("*.toml")}
