"""What a checkpoint is to the loader: a config, and tensors that are read when asked for.

Whatever the files are, a `Source` speaks Hugging Face: ``config`` is a ``config.json``, tensors
have the names and the orientation ``[out, in]`` of that family's Hugging Face implementation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from jaxinfer.errors import ModelNotFound
from jaxinfer.shapes import Shape

#: Which part of a tensor to read: one slice of step 1 for each leading axis; the other axes are
#: whole.
Index = tuple[slice, ...]


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """A tensor as `Source.read` will return it.

    Attributes:
        name: its Hugging Face name.
        shape: its shape, a linear layer being ``[out, in]``.
        dtype: the dtype after reading; float32 for quantised storage.
        storage: how the file holds it: ``F32``, ``BF16``, ``Q4_1`` ...
    """

    name: str
    shape: Shape
    dtype: np.dtype
    storage: str


class Source(Protocol):
    """A checkpoint, opened but not read."""

    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    path: Path

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """Reads one tensor, or the part of it that ``index`` covers, into an array of its own.

        Raises:
            KeyError: no tensor of that name.
            ValueError: an index with more axes than the tensor, or with steps.
        """
        ...

    def close(self) -> None:
        """Lets go of the files; reading afterwards raises ValueError."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...


def open_source(path: Path) -> Source:
    """Opens a directory with ``*.safetensors`` and a ``config.json``, or a ``.gguf`` file.

    Raises:
        ModelNotFound: neither of the two is there.
        CorruptCheckpoint: the files contradict themselves, or lead out of the directory.
        Unsupported: a GGUF architecture or storage format that is not known here.
    """
    # The readers import this module for TensorInfo.
    from jaxinfer.checkpoint.fp8 import Fp8Source, is_fp8
    from jaxinfer.checkpoint.gguf import GgufSource
    from jaxinfer.checkpoint.mxfp4 import Mxfp4Source, is_mxfp4
    from jaxinfer.checkpoint.safetensors import SafetensorsSource

    path = Path(path)
    if path.is_dir():
        source = SafetensorsSource(path)
        if is_fp8(source.config):
            return Fp8Source(source)
        return Mxfp4Source(source) if is_mxfp4(source.config) else source
    if path.is_file() and path.suffix == ".gguf":
        return GgufSource(path)
    raise ModelNotFound(
        f"{path} is neither a directory with *.safetensors files nor a .gguf file"
        + ("" if path.exists() else ": it does not exist")
    )


def bounds(index: Index | None, shape: Shape) -> tuple[tuple[int, int], ...]:
    """An index as ``(start, stop)`` of every axis of ``shape``, clipped as slicing does."""
    index = () if index is None else tuple(index)
    if len(index) > len(shape):
        raise ValueError(f"index {index} has more axes than the shape {shape}")
    if any(axis.step not in (None, 1) for axis in index):
        raise ValueError(f"index {index} has steps; only contiguous parts can be read")
    index += (slice(None),) * (len(shape) - len(index))
    pairs = (axis.indices(size)[:2] for axis, size in zip(index, shape, strict=True))
    return tuple((start, max(start, stop)) for start, stop in pairs)
