"""A checkpoint whose experts are packed as MXFP4, as a `Source` of the matrices they stand for.

What is packed the tensors themselves say: ``NAME_blocks`` ``[E, out, in / 32, 16]`` and
``NAME_scales`` ``[E, out, in / 32]``, both bytes, are shown as ``NAME`` ``[E, in, out]`` in
bfloat16, as gpt-oss has them where they are not packed. All other tensors are as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import ml_dtypes
import numpy as np

from jaxinfer.checkpoint.source import Index, Source, TensorInfo, bounds
from jaxinfer.errors import CorruptCheckpoint
from jaxinfer.quant.mxfp4 import GROUP, GROUP_BYTES, decode

_BLOCKS, _SCALES = "_blocks", "_scales"
_BYTE, _BFLOAT16 = np.dtype(np.uint8), np.dtype(ml_dtypes.bfloat16)


def is_mxfp4(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` says that tensors may be packed so."""
    quantization = config.get("quantization_config")
    return isinstance(quantization, Mapping) and quantization.get("quant_method") == "mxfp4"


class Mxfp4Source:
    """``packed`` with its packed tensors decoded as they are read, one expert at a time."""

    def __init__(self, packed: Source):
        """Looks at names, shapes and dtypes only.

        Raises:
            CorruptCheckpoint: blocks and scales that do not belong together.
        """
        self._packed = packed
        self.path, self.config = packed.path, packed.config
        tensors = dict(packed.tensors)
        names = [name.removesuffix(_BLOCKS) for name in tensors if name.endswith(_BLOCKS)]
        self._decoded = {name: self._info(name) for name in names}
        for name in names:
            del tensors[name + _BLOCKS], tensors[name + _SCALES]
        self.tensors: Mapping[str, TensorInfo] = tensors | self._decoded

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """See `Source.read`."""
        if name not in self._decoded:
            return self._packed.read(name, index)
        experts, ins, outs = (slice(*pair) for pair in bounds(index, self._decoded[name].shape))
        size_in = self._decoded[name].shape[1]
        numbers = np.empty(
            (experts.stop - experts.start, outs.stop - outs.start, size_in), _BFLOAT16
        )
        for nth, expert in enumerate(range(experts.start, experts.stop)):
            part = (slice(expert, expert + 1), outs)
            blocks = self._packed.read(name + _BLOCKS, part).reshape(-1, GROUP_BYTES)
            scales = self._packed.read(name + _SCALES, part).reshape(-1)
            decode(blocks, scales, numbers[nth].reshape(-1, GROUP))
        return numbers[:, :, ins].swapaxes(1, 2)

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
        blocks, scales = tensors[name + _BLOCKS], tensors.get(name + _SCALES)
        if scales is None:
            raise CorruptCheckpoint(f"{self.path}: {name + _BLOCKS} has no {name + _SCALES}")
        for tensor in (blocks, scales):
            if tensor.dtype != _BYTE:
                raise CorruptCheckpoint(
                    f"{self.path}: {tensor.name} is stored as {tensor.storage}; MXFP4 is U8"
                )
        if len(blocks.shape) != 4 or blocks.shape != (*scales.shape, GROUP_BYTES):
            raise CorruptCheckpoint(
                f"{self.path}: {blocks.name} has the shape {blocks.shape} and {scales.name}"
                f" {scales.shape}; [E, out, in / {GROUP}, {GROUP_BYTES}] and [E, out, in / {GROUP}]"
                " belong together"
            )
        num_experts, size_out, num_groups = scales.shape
        shape = (num_experts, num_groups * GROUP, size_out)
        return TensorInfo(name=name, shape=shape, dtype=_BFLOAT16, storage="MXFP4")
