"""Bounded reading of a mapped file: the few kinds of values that GGUF is made of."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

from jaxinfer.errors import CorruptCheckpoint

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class Cursor:
    """Where the next value begins; every reading moves on, and raises CorruptCheckpoint at the end.

    ``what`` names the value in the error.
    """

    def __init__(self, data: mmap.mmap, path: Path):
        self.data, self.path, self.position = data, path, 0

    @property
    def remaining(self) -> int:
        return len(self.data) - self.position

    def error(self, reason: str) -> CorruptCheckpoint:
        return CorruptCheckpoint(f"{self.path}: {reason} (at byte {self.position})")

    def take(self, nbytes: int, what: str) -> bytes:
        if nbytes > self.remaining:
            raise self.error(f"{what} of {nbytes} bytes, but {self.remaining} bytes remain")
        start = self.position
        self.position += nbytes
        return self.data[start : self.position]

    def u32(self, what: str) -> int:
        return _U32.unpack(self.take(4, what))[0]

    def u64(self, what: str) -> int:
        return _U64.unpack(self.take(8, what))[0]

    def count(self, what: str, least_bytes: int) -> int:
        """A number of things of at least ``least_bytes`` each: no more than the file can hold."""
        count = self.u64(f"the number of {what}")
        if count * least_bytes > self.remaining:
            raise self.error(f"{count} {what} announced, but {self.remaining} bytes remain")
        return count

    def string(self, what: str, max_bytes: int | None = None) -> str:
        nbytes = self.u64(f"the length of {what}")
        if max_bytes is not None and nbytes > max_bytes:
            raise self.error(f"{what} of {nbytes} bytes; at most {max_bytes} are allowed")
        return self.take(nbytes, what).decode("utf-8", "replace")

    def strings(self, count: int, what: str) -> list[str]:
        """An array of strings: the tokens of a vocabulary, so this loop must be fast."""
        data, size, position = self.data, len(self.data), self.position
        unpack, found = _U64.unpack_from, []
        for _ in range(count):
            start = position + 8
            if start > size or (position := start + unpack(data, start - 8)[0]) > size:
                raise self.error(f"a string of {what} runs past the end of the file")
            found.append(data[start:position].decode("utf-8", "replace"))
        self.position = position
        return found
