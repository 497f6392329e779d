"""The GGUF file format, versions 2 and 3, little-endian: metadata, tensor table, raw blocks.

Every count, length and offset comes from the file and is held against what the file can hold before
anything is allocated by it. The layout: magic, version, number of tensors, number of keys, the keys
with their values, the table of tensors (name, dimensions, type, offset), padding, the blocks.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from jaxinfer.checkpoint.gguf_cursor import Cursor
from jaxinfer.errors import CorruptCheckpoint, Unsupported
from jaxinfer.quant.ggml import FORMATS, BlockFormat, dequantize
from jaxinfer.shapes import Shape, round_up

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_MAX_ALIGNMENT = 1 << 20
_MAX_NAME_BYTES = (1 << 16) - 1
#: Least bytes of a key (length, one-byte value and its type) and of a table entry; they bound the
#: counts.
_LEAST_KEY_BYTES = 8 + 4 + 1
_LEAST_ENTRY_BYTES = 8 + 4 + 8 + 4 + 8
_LEAST_STRING_BYTES = 8
#: Raw bytes copied out of the file at once while decoding.
_CHUNK_BYTES = 1 << 20

_BOOL, _STRING, _ARRAY = 7, 8, 9
_SCALARS: dict[int, np.dtype] = {
    number: np.dtype(code)
    for number, code in {
        0: "<u1",
        1: "<i1",
        2: "<u2",
        3: "<i2",
        4: "<u4",
        5: "<i4",
        6: "<f4",
        _BOOL: "?",
        10: "<u8",
        11: "<i8",
        12: "<f8",
    }.items()
}


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A line of the tensor table.

    Attributes:
        name: the name in the file, as ``blk.0.attn_q.weight``.
        shape: row-major, so the reverse of the order in the file.
        block_format: how its blocks are coded.
        offset: of its first byte from the start of the file.
    """

    name: str
    shape: Shape
    block_format: BlockFormat
    offset: int

    @property
    def row_bytes(self) -> int:
        return self.shape[-1] // self.block_format.elements * self.block_format.nbytes

    @property
    def num_rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def end(self) -> int:
        return self.offset + self.num_rows * self.row_bytes


class GgufFile:
    """An opened GGUF file: ``metadata`` and ``tensors`` are read, the blocks stay on disk.

    ``metadata`` maps keys to int, float, bool, str, a list of str, or a NumPy array of numbers.
    Strings that are not valid UTF-8 have replacement characters.
    """

    def __init__(self, path: Path):
        """Reads the header and the tables.

        Raises:
            CorruptCheckpoint: truncated, or sizes that lie.
            Unsupported: a version, byte order or storage format that is not known here.
        """
        self.path = path
        self._map: mmap.mmap | None = _map_file(path)
        cursor = Cursor(self._map, path)
        num_tensors, num_keys = _read_header(cursor)
        self.metadata = _read_metadata(cursor, num_keys)
        self.tensors = _read_table(cursor, num_tensors, self.metadata)

    def read_rows(
        self, name: str, rows: slice | np.ndarray, columns: slice = slice(None)
    ) -> np.ndarray:
        """Decodes some rows of a tensor, ``[len(rows), len(columns)]`` in the format's dtype.

        Args:
            name: of the tensor.
            rows: which, its leading axes flattened; an array of numbers names them in any order.
            columns: which elements of each row, step 1; the blocks that hold them are decoded.
        """
        tensor = self.tensors[name]
        elements, nbytes = tensor.block_format.elements, tensor.block_format.nbytes
        start, stop, _ = columns.indices(tensor.shape[-1])
        first, last = start // elements, -(-stop // elements)
        table = self._rows(tensor)[:, first * nbytes : last * nbytes]
        rows = np.arange(len(table))[rows] if isinstance(rows, slice) else rows
        out = np.empty((len(rows), (last - first) * elements), tensor.block_format.dtype)
        step = max(1, _CHUNK_BYTES // tensor.row_bytes)
        for begin in range(0, len(rows), step):
            blocks = table[rows[begin : begin + step]].reshape(-1, nbytes)
            values = out[begin : begin + step].reshape(-1, elements)
            dequantize(blocks, tensor.block_format, values)
        wanted = out[:, start - first * elements : stop - first * elements]
        return wanted if wanted.shape == out.shape else wanted.copy()

    def _rows(self, tensor: StoredTensor) -> np.ndarray:
        """The raw bytes of a tensor, ``[rows, row_bytes]``, still in the file."""
        if self._map is None:
            raise ValueError(f"{self.path} is closed")
        nbytes = tensor.end - tensor.offset
        data = np.frombuffer(self._map, np.uint8, nbytes, tensor.offset)
        return data.reshape(tensor.num_rows, tensor.row_bytes)

    def close(self) -> None:
        """Lets go of the file."""
        self._map = None


def _map_file(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        if not file.read(1):
            raise CorruptCheckpoint(f"{path} is empty")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _read_header(cursor: Cursor) -> tuple[int, int]:
    magic = cursor.take(4, "the magic number")
    if magic != _MAGIC:
        raise cursor.error(f"the file begins with {magic!r}, not with {_MAGIC!r}")
    version = cursor.u32("the version")
    if version not in _VERSIONS:
        if int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS:
            raise Unsupported(f"{cursor.path}: big-endian GGUF; convert it to little-endian")
        raise Unsupported(f"{cursor.path}: GGUF version {version}; known are {_VERSIONS}")
    num_tensors = cursor.count("tensors", _LEAST_ENTRY_BYTES)
    num_keys = cursor.count("metadata keys", _LEAST_KEY_BYTES)
    return num_tensors, num_keys


def _read_metadata(cursor: Cursor, num_keys: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = cursor.string("a metadata key", _MAX_NAME_BYTES)
        if key in metadata:
            raise cursor.error(f"the metadata key {key!r} appears twice")
        metadata[key] = _read_value(cursor, key, cursor.u32(f"the type of {key!r}"))
    return metadata


def _read_value(cursor: Cursor, key: str, kind: int) -> Any:
    if kind == _STRING:
        return cursor.string(f"the value of {key!r}")
    if kind == _ARRAY:
        return _read_array(cursor, key)
    dtype = _dtype_of(cursor, key, kind)
    return np.frombuffer(cursor.take(dtype.itemsize, f"the value of {key!r}"), dtype)[0].item()


def _read_array(cursor: Cursor, key: str) -> list[str] | np.ndarray:
    kind = cursor.u32(f"the element type of {key!r}")
    if kind == _ARRAY:
        raise cursor.error(f"{key!r} is an array of arrays; no model writes them")
    if kind == _STRING:
        return cursor.strings(cursor.count(f"strings of {key!r}", _LEAST_STRING_BYTES), repr(key))
    dtype = _dtype_of(cursor, key, kind)
    count = cursor.count(f"elements of {key!r}", dtype.itemsize)
    return np.frombuffer(cursor.take(count * dtype.itemsize, f"the value of {key!r}"), dtype)


def _dtype_of(cursor: Cursor, key: str, kind: int) -> np.dtype:
    if kind not in _SCALARS:
        raise cursor.error(f"{key!r} has the unknown value type {kind}")
    return _SCALARS[kind]


def _read_table(
    cursor: Cursor, num_tensors: int, metadata: dict[str, Any]
) -> dict[str, StoredTensor]:
    alignment = metadata.get("general.alignment", 32)
    if not _is_alignment(alignment):
        raise cursor.error(f"general.alignment is {alignment!r}, not a power of two up to 2**20")
    tensors: dict[str, StoredTensor] = {}
    for _ in range(num_tensors):
        tensor = _read_entry(cursor)
        if tensor.name in tensors:
            raise cursor.error(f"the tensor {tensor.name!r} appears twice")
        tensors[tensor.name] = tensor
    blocks_start = round_up(cursor.position, alignment)
    placed = {
        name: _placed(cursor, tensor, blocks_start, alignment) for name, tensor in tensors.items()
    }
    _require_no_overlap(cursor, placed.values())
    return placed


def _is_alignment(value: Any) -> bool:
    is_int = isinstance(value, int) and not isinstance(value, bool)
    return is_int and 0 < value <= _MAX_ALIGNMENT and value & (value - 1) == 0


def _read_entry(cursor: Cursor) -> StoredTensor:
    """A line of the table; its offset is still relative to the start of the blocks."""
    name = cursor.string("a tensor name", _MAX_NAME_BYTES)
    num_dimensions = cursor.u32(f"the number of dimensions of {name!r}")
    if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
        raise cursor.error(f"{name!r} has {num_dimensions} dimensions; 1 to 4 are allowed")
    shape = tuple(cursor.u64(f"a dimension of {name!r}") for _ in range(num_dimensions))[::-1]
    number = cursor.u32(f"the type of {name!r}")
    if number not in FORMATS:
        known = ", ".join(block_format.name for block_format in FORMATS.values())
        raise Unsupported(
            f"{cursor.path}: {name!r} is stored as ggml type {number}; known: {known}"
        )
    block_format = FORMATS[number]
    if 0 in shape or shape[-1] % block_format.elements:
        raise cursor.error(
            f"{name!r} has the shape {shape}: no axis may be 0, and rows of {block_format.name} "
            f"are made of blocks of {block_format.elements}"
        )
    return StoredTensor(
        name=name, shape=shape, block_format=block_format, offset=cursor.u64(f"offset of {name!r}")
    )


def _placed(
    cursor: Cursor, tensor: StoredTensor, blocks_start: int, alignment: int
) -> StoredTensor:
    """The entry with its offset counted from the start of the file, proved to lie inside it."""
    if tensor.offset % alignment:
        raise cursor.error(f"{tensor.name!r} is at {tensor.offset}, not a multiple of {alignment}")
    placed = replace(tensor, offset=blocks_start + tensor.offset)
    if placed.end > len(cursor.data):
        raise cursor.error(
            f"{tensor.name!r} of shape {tensor.shape} ends at byte {placed.end}, but the file has "
            f"{len(cursor.data)} bytes"
        )
    return placed


def _require_no_overlap(cursor: Cursor, tensors: Iterable[StoredTensor]) -> None:
    for before, after in pairwise(sorted(tensors, key=lambda tensor: tensor.offset)):
        if after.offset < before.end:
            raise cursor.error(f"{before.name!r} and {after.name!r} overlap")
