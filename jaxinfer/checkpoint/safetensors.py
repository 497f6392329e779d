"""safetensors files: a JSON header that is held against the file, and memory-mapped bytes.

The `safetensors` package reads as lazily, but its errors name neither file nor tensor and it has no
float8 scales for NumPy; the format is small enough to read here.

Format: eight bytes of little-endian header length, the header, the data. The header maps names to
``{"dtype", "shape", "data_offsets": [begin, end]}``; offsets count from the start of the data,
which they cover without holes or overlaps.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import ml_dtypes
import numpy as np

from jaxinfer.checkpoint.directory import read_config, shard_paths
from jaxinfer.checkpoint.source import Index, TensorInfo, bounds
from jaxinfer.errors import CorruptCheckpoint, Unsupported

#: The limit of the format's own implementation.
_MAX_HEADER_BYTES = 100_000_000

_DTYPES: dict[str, np.dtype] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "U16": np.uint16,
        "I16": np.int16,
        "U32": np.uint32,
        "I32": np.int32,
        "U64": np.uint64,
        "I64": np.int64,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F32": np.float32,
        "F64": np.float64,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    }.items()
}


@dataclass(frozen=True, kw_only=True)
class _Span:
    """A tensor's place in its file: byte offset from the start of the file."""

    info: TensorInfo
    begin: int
    nbytes: int


class SafetensorsFile:
    """One opened safetensors file."""

    def __init__(self, path: Path):
        """Reads and checks the header.

        Raises:
            CorruptCheckpoint: truncated, or a header that lies.
            Unsupported: a dtype that NumPy cannot hold.
        """
        self.path = path
        with path.open("rb") as file:
            spans = _read_spans(path, file)
            self._map: mmap.mmap | None = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._spans = {span.info.name: span for span in spans}
        self.tensors = {name: span.info for name, span in self._spans.items()}

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """See `Source.read`."""
        if self._map is None:
            raise ValueError(f"{self.path} is closed")
        span = self._spans[name]
        wanted = tuple(slice(start, stop) for start, stop in bounds(index, span.info.shape))
        data = np.frombuffer(self._map, np.uint8, span.nbytes, span.begin)
        # A copy: the caller's array must not change or fault when the file does.
        return np.array(data.view(span.info.dtype).reshape(span.info.shape)[wanted])

    def close(self) -> None:
        """Lets go of the file."""
        self._map = None


class SafetensorsSource:
    """A Hugging Face directory, ``config.json`` and safetensors files, as a `Source`."""

    def __init__(self, directory: Path):
        self.path = directory
        self.config = read_config(directory)
        self._file_of: dict[str, SafetensorsFile] = {}
        shards = shard_paths(directory)
        self._files = [SafetensorsFile(path) for path in shards.paths]
        for file in self._files:
            self._add(file)
        for name, file_name in shards.weight_map.items():
            holder = self._file_of.get(name)
            if holder is None or holder.path.name != file_name:
                raise CorruptCheckpoint(
                    f"{directory}: the index says that {name!r} is in {file_name}; it is "
                    + (f"in {holder.path.name}" if holder else "nowhere")
                )
        self.tensors: Mapping[str, TensorInfo] = {
            name: file.tensors[name] for name, file in self._file_of.items()
        }

    def _add(self, file: SafetensorsFile) -> None:
        for name in file.tensors:
            if name in self._file_of:
                other = self._file_of[name].path.name
                raise CorruptCheckpoint(f"{name!r} is both in {other} and in {file.path.name}")
            self._file_of[name] = file

    def read(self, name: str, index: Index | None = None) -> np.ndarray:
        """See `Source.read`."""
        return self._file_of[name].read(name, index)

    def close(self) -> None:
        """See `Source.close`."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _read_spans(path: Path, file: Any) -> list[_Span]:
    size = path.stat().st_size
    header_bytes = int.from_bytes(file.read(8), "little")
    if size < 8 or header_bytes > min(size - 8, _MAX_HEADER_BYTES):
        raise CorruptCheckpoint(
            f"{path}: a header of {header_bytes} bytes announced in a file of {size} bytes"
        )
    header = _parse_header(path, file.read(header_bytes))
    start = 8 + header_bytes
    spans = [_span(path, name, entry, start) for name, entry in header.items()]
    _require_full_cover(path, spans, start, size)
    return spans


def _parse_header(path: Path, text: bytes) -> dict[str, Any]:
    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = dict(pairs)
        if len(keys) != len(pairs):
            raise CorruptCheckpoint(f"{path}: a key appears twice in the header")
        return keys

    try:
        header = json.loads(text, object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpoint(f"{path}: the header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise CorruptCheckpoint(f"{path}: the header is {type(header).__name__}, not an object")
    header.pop("__metadata__", None)
    return header


def _span(path: Path, name: str, entry: Any, start: int) -> _Span:
    """The entry of one tensor, checked on its own."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CorruptCheckpoint(f"{path}: {name!r} has no dtype, shape and data_offsets: {entry!r}")
    storage, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (_are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2):
        raise CorruptCheckpoint(f"{path}: {name!r} has shape {shape!r}, data_offsets {offsets!r}")
    if not isinstance(storage, str) or storage not in _DTYPES:
        raise Unsupported(f"{path}: {name!r} is stored as {storage!r}; known: {', '.join(_DTYPES)}")
    dtype = _DTYPES[storage]
    begin, end = offsets
    wanted = math.prod(shape) * dtype.itemsize
    if end - begin != wanted:
        raise CorruptCheckpoint(
            f"{path}: {name!r} of {storage} and shape {shape} needs {wanted} bytes, but "
            f"data_offsets {offsets} hold {end - begin}"
        )
    info = TensorInfo(name=name, shape=tuple(shape), dtype=dtype, storage=storage)
    return _Span(info=info, begin=start + begin, nbytes=wanted)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in values)


def _require_full_cover(path: Path, spans: list[_Span], start: int, size: int) -> None:
    """The tensors lie end to end from the header to the end of the file."""
    position = start
    for span in sorted(spans, key=lambda span: (span.begin, span.nbytes)):
        if span.begin != position:
            kind = "overlaps the tensor before it" if span.begin < position else "follows a hole"
            raise CorruptCheckpoint(f"{path}: {span.info.name!r} {kind}")
        position += span.nbytes
    if position != size:
        raise CorruptCheckpoint(f"{path}: the tensors end at byte {position}, the file at {size}")
