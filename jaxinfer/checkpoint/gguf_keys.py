"""Typed, bounded access to the metadata of one GGUF model."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from jaxinfer.checkpoint.gguf_file import StoredTensor
from jaxinfer.errors import CorruptCheckpoint

_MAX_COUNT = 1 << 31


@dataclass(frozen=True, kw_only=True)
class Keys:
    """The keys of a model, named without their architecture: ``keys.count("block_count")``.

    A value that is missing (where there is no default), of a wrong type or absurd raises
    CorruptCheckpoint with the full key.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    @property
    def architecture(self) -> str:
        architecture = self.metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise self._error("general.architecture", architecture, "the name of an architecture")
        return architecture

    @property
    def num_layers(self) -> int:
        """``block_count``: at most the number of tensors, so that lists of layers stay small."""
        count = self.count("block_count")
        if count > len(self.tensors):
            raise self._error("block_count", count, f"at most the {len(self.tensors)} tensors")
        return count

    def has(self, key: str) -> bool:
        return self._full(key) in self.metadata

    @overload
    def count(self, key: str) -> int: ...
    @overload
    def count(self, key: str, default: int) -> int: ...

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number above 0; 0 is allowed where it is the default.

        Some writers give one number a layer: a list of equal numbers is that number.
        """
        value = self.metadata.get(self._full(key), default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        is_int = isinstance(value, int) and not isinstance(value, bool)
        if not is_int or not (0 < value < _MAX_COUNT or value == 0 == default):
            raise self._error(key, value, "one whole number above 0, the same for all layers")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number; a float32 becomes the shortest decimal that denotes it, as 1e-05."""
        value = self.metadata.get(self._full(key), default)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise self._error(key, value, "a finite number")
        return float(str(np.float32(value)))

    def positive(self, key: str, default: float | None = None) -> float:
        """As `number`, above 0."""
        value = self.number(key, default)
        if value <= 0:
            raise self._error(key, value, "a number above 0")
        return value

    def token_id(self, name: str) -> int | None:
        """``tokenizer.ggml.<name>_token_id``."""
        key = f"tokenizer.ggml.{name}_token_id"
        value = self.metadata.get(key)
        if value is not None and type(value) is not int:
            raise self._error(key, value, "a token id")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.metadata.get(self._full(key), default)
        if not isinstance(value, bool):
            raise self._error(key, value, "true or false")
        return value

    def flags(self, key: str, length: int) -> list[bool]:
        value = self.metadata.get(self._full(key))
        if not isinstance(value, np.ndarray) or value.dtype != np.bool_ or len(value) != length:
            raise self._error(key, value, f"{length} times true or false")
        return value.tolist()

    def text(self, key: str, default: str) -> str:
        value = self.metadata.get(self._full(key), default)
        if not isinstance(value, str):
            raise self._error(key, value, "a text")
        return value

    def tensor(self, name: str) -> StoredTensor:
        if name not in self.tensors:
            raise CorruptCheckpoint(f"{self.path}: no tensor {name!r}")
        return self.tensors[name]

    def _full(self, key: str) -> str:
        return f"{self.architecture}.{key}"

    def _error(self, key: str, value: Any, expected: str) -> CorruptCheckpoint:
        full = key if key.startswith(("general.", "tokenizer.")) else self._full(key)
        shown = reprlib.repr(value)
        return CorruptCheckpoint(f"{self.path}: {full} is {shown}; expected {expected}")
