"""A checkpoint without files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from jaxinfer.checkpoint.source import Index, TensorInfo
from tests.golden.models.seeded import seeded_tensor


class DictSource:
    """A `jaxinfer.checkpoint.source.Source` of float32 tensors that follow from their names."""

    def __init__(self, config: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]):
        self.path = Path("seeded")
        self.config = config
        self.tensors = {
            name: TensorInfo(name=name, shape=shape, dtype=np.dtype(np.float32), storage="F32")
            for name, shape in shapes.items()
        }

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """See `Source.read`."""
        tensor = seeded_tensor(name, self.tensors[name].shape)
        return tensor if index is None else tensor[index].copy()

    def close(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
