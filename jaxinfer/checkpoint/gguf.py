"""A GGUF file as a `Source`: Hugging Face config, names and orientation over blocks on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from jaxinfer.checkpoint.gguf_file import GgufFile
from jaxinfer.checkpoint.gguf_keys import Keys
from jaxinfer.checkpoint.gguf_metadata import hf_config
from jaxinfer.checkpoint.gguf_rope import rope_scaling_of_tensors
from jaxinfer.checkpoint.gguf_tensors import HfTensor, hf_tensors
from jaxinfer.checkpoint.source import Index, TensorInfo, bounds
from jaxinfer.errors import Unsupported


class GgufSource:
    """An opened GGUF file.

    Attributes:
        path: the file.
        config: in the style of the family's ``config.json``.
        tensors: by Hugging Face name; a tensor that the family does not know keeps its GGUF name.
        metadata: all keys of the file as they stand; the tokenizer is made from
            ``tokenizer.ggml.*``.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = GgufFile(path)
        self.metadata: dict[str, Any] = self._file.metadata
        num_parts = self.metadata.get("split.count", 1)
        if isinstance(num_parts, int) and num_parts > 1:
            raise Unsupported(f"{path} is one of several parts; join them with llama-gguf-split")
        keys = Keys(path=path, metadata=self.metadata, tensors=self._file.tensors)
        self.config = hf_config(keys)
        scaling = rope_scaling_of_tensors(self.config, keys, self._read_vector)
        if scaling is not None:
            self.config["rope_scaling"] = scaling
        self._tensors = hf_tensors(self._file.tensors, keys.architecture, self.config)
        self.tensors: Mapping[str, TensorInfo] = {
            name: _info(tensor) for name, tensor in self._tensors.items()
        }

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """See `Source.read`; quantised tensors become float32, rows and blocks at a time."""
        tensor = self._tensors[name]
        wanted = bounds(index, tensor.shape)
        if tensor.transposed:
            return np.ascontiguousarray(self._read_stored(tensor, wanted[::-1]).T)
        values = self._read_stored(tensor, wanted)
        if tensor.offset:
            values -= values.dtype.type(tensor.offset)
        return values

    def close(self) -> None:
        """See `Source.close`."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _read_vector(self, gguf_name: str) -> np.ndarray:
        return self._file.read_rows(gguf_name, slice(None))[0]

    def _read_stored(self, tensor: HfTensor, wanted: tuple[tuple[int, int], ...]) -> np.ndarray:
        """The part ``wanted`` of the stored tensor, its leading axis in Hugging Face's order."""
        name, shape = tensor.stored.name, tensor.stored.shape
        parts = tuple(slice(start, stop) for start, stop in wanted)
        order = tensor.row_order()
        if len(shape) == 1:
            vector = self._file.read_rows(
                name, slice(None), parts[0] if order is None else slice(None)
            )
            return vector[0] if order is None else vector[0][order[parts[0]]]
        if len(shape) == 2:
            rows = parts[0] if order is None else order[parts[0]]
            return self._file.read_rows(name, rows, parts[1])
        (start, stop), rows_of_each = wanted[0], tensor.stored.num_rows // shape[0]
        rows = slice(start * rows_of_each, stop * rows_of_each)
        stack = self._file.read_rows(name, rows, parts[-1])
        stack = stack.reshape(stop - start, *shape[1:-1], stack.shape[-1])
        return np.ascontiguousarray(stack[:, *parts[1:-1]])


def _info(tensor: HfTensor) -> TensorInfo:
    block_format = tensor.stored.block_format
    return TensorInfo(
        name=tensor.name, shape=tensor.shape, dtype=block_format.dtype, storage=block_format.name
    )
