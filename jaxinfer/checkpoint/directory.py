"""The files of a Hugging Face model directory, none of them outside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxinfer.errors import CorruptCheckpoint, ModelNotFound

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
#: JSON files of real models stay far below; it bounds what a hostile one makes us parse.
_MAX_JSON_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Shards:
    """The safetensors files of a model, and what its index says: tensor -> file name."""

    paths: tuple[Path, ...]
    weight_map: Mapping[str, str]


def read_config(directory: Path) -> dict[str, Any]:
    """The ``config.json`` of a model directory.

    Raises:
        ModelNotFound: there is none.
        CorruptCheckpoint: not a JSON object.
    """
    path = directory / CONFIG_FILE
    if not path.exists():
        raise ModelNotFound(f"{directory} has no {CONFIG_FILE}: not a model directory")
    return _read_json_object(inside(directory, CONFIG_FILE))


def shard_paths(directory: Path) -> Shards:
    """Which safetensors files hold the weights: the single one, those of the index, or all.

    Raises:
        ModelNotFound: there are none.
        CorruptCheckpoint: an index that names missing files or files outside the directory.
    """
    if (directory / SINGLE_FILE).exists():
        return Shards(paths=(inside(directory, SINGLE_FILE),), weight_map={})
    if (directory / INDEX_FILE).exists():
        weight_map = _weight_map(inside(directory, INDEX_FILE))
        names = sorted(set(weight_map.values()))
        return Shards(paths=tuple(inside(directory, name) for name in names), weight_map=weight_map)
    names = sorted(path.name for path in directory.glob("*.safetensors"))
    if not names:
        raise ModelNotFound(f"{directory} has no *.safetensors files")
    return Shards(paths=tuple(inside(directory, name) for name in names), weight_map={})


def inside(directory: Path, name: str) -> Path:
    """The file ``name`` of a directory, proved to be in it.

    A link may lead elsewhere in the directory, and in a snapshot of the Hugging Face cache to its
    store of blobs, where all of its files really are.

    Raises:
        CorruptCheckpoint: a name with a path in it, a link that leads out, a file that is not
            there.
    """
    if not name or name in (".", "..") or Path(name).name != name or "\\" in name or "\0" in name:
        raise CorruptCheckpoint(
            f"{directory} names the file {name!r}: only plain names are allowed"
        )
    path = directory / name
    home = directory.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    target = path.resolve()
    if not any(target.is_relative_to(folder) for folder in allowed):
        raise CorruptCheckpoint(f"{path} is a link to {target}, outside of the model directory")
    if not target.is_file():
        raise CorruptCheckpoint(f"{path} is missing")
    return path


def _weight_map(path: Path) -> dict[str, str]:
    weight_map = _read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptCheckpoint(f"{path} has no weight_map")
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str):
            raise CorruptCheckpoint(f"{path}: {name!r} is in {file_name!r}, not in a file")
    return weight_map


def _read_json_object(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    if size > _MAX_JSON_BYTES:
        raise CorruptCheckpoint(f"{path} has {size} bytes; at most {_MAX_JSON_BYTES} are read")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpoint(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CorruptCheckpoint(f"{path} holds {type(value).__name__}, not a JSON object")
    return value
