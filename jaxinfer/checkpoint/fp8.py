"""A checkpoint whose matrices are blocks of FP8, as a `Source` of the numbers they stand for.

DeepSeek-V3 and R1, Kimi K2 and the FP8 forms of Qwen 3 are published so. What is packed the tensors
themselves say: ``NAME`` in E4M3 and ``NAME_scale_inv``, a factor for each block of 128 by 128, are
shown as ``NAME`` in float32, and the loader rounds it to the model's dtype. All other tensors are
as they are.

The weights are computed with as they are after that. Such a config also says that activations are
to be rounded to FP8 as they come (``activation_scheme = "dynamic"``): that is not done, and what is
computed is nearer to the numbers that were trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import ml_dtypes
import numpy as np

from jaxinfer.checkpoint.source import Index, Source, TensorInfo, bounds
from jaxinfer.errors import CorruptCheckpoint
from jaxinfer.quant.fp8_blocks import BLOCK, decode, num_blocks

_FACTORS = "_scale_inv"
_E4M3, _FLOAT32 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(np.float32)
#: What factors are stored as; all of it is held by float32.
_FACTOR_STORAGES = ("F32", "BF16", "F8_E8M0")


def is_fp8(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` says that matrices are packed so."""
    quantization = config.get("quantization_config")
    return isinstance(quantization, Mapping) and quantization.get("quant_method") == "fp8"


class Fp8Source:
    """``packed`` with its packed matrices decoded as they are read."""

    def __init__(self, packed: Source):
        """Looks at names, shapes and dtypes only.

        Raises:
            CorruptCheckpoint: matrices and factors that do not belong together.
        """
        self._packed = packed
        self.path, self.config = packed.path, packed.config
        tensors = dict(packed.tensors)
        with_factors = [name.removesuffix(_FACTORS) for name in tensors if name.endswith(_FACTORS)]
        self._decoded = {name: self._info(name) for name in with_factors}
        for name in with_factors:
            del tensors[name + _FACTORS]
        for name, info in tensors.items():
            if info.dtype == _E4M3 and name not in self._decoded:
                raise CorruptCheckpoint(f"{self.path}: {name} is FP8 and has no {name + _FACTORS}")
        self.tensors: Mapping[str, TensorInfo] = tensors | self._decoded

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """See `Source.read`."""
        if name not in self._decoded:
            return self._packed.read(name, index)
        pairs = bounds(index, self._decoded[name].shape)
        part = tuple(slice(start, stop) for start, stop in pairs)
        blocks = tuple(slice(start // BLOCK, -(-stop // BLOCK)) for start, stop in pairs)
        numbers = self._packed.read(name, part)
        factors = self._packed.read(name + _FACTORS, blocks).astype(np.float32)
        (first_row, _), (first_column, _) = pairs
        return decode(numbers, factors, (first_row % BLOCK, first_column % BLOCK))

    def close(self) -> None:
        """See `Source.close`."""
        self._packed.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _info(self, name: str) -> TensorInfo:
        """What the pair of tensors stands for."""
        tensors = self._packed.tensors
        factors, numbers = tensors[name + _FACTORS], tensors.get(name)
        if numbers is None:
            raise CorruptCheckpoint(f"{self.path}: {factors.name} has no {name}")
        if numbers.dtype != _E4M3:
            raise CorruptCheckpoint(
                f"{self.path}: {name} is stored as {numbers.storage}, beside {factors.name}; it"
                " must be F8_E4M3"
            )
        if factors.storage not in _FACTOR_STORAGES:
            raise CorruptCheckpoint(
                f"{self.path}: {factors.name} is stored as {factors.storage}; it must be one of "
                + ", ".join(_FACTOR_STORAGES)
            )
        wanted = num_blocks(numbers.shape)
        if len(wanted) != 2 or factors.shape != wanted:
            raise CorruptCheckpoint(
                f"{self.path}: {name} has the shape {numbers.shape} and {factors.name}"
                f" {factors.shape}; a matrix and one factor for each block of {BLOCK} by {BLOCK}"
                f" belong together, here {wanted}"
            )
        return TensorInfo(name=name, shape=numbers.shape, dtype=_FLOAT32, storage="FP8")
