"""The file of requests: read twice, never held."""

import os
import shutil
import stat
import sys
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from jaxinfer.errors import InvalidParameter
from serve.batch.lines import BadLine, Key, Line, read_line, too_long

#: Bytes of a line.
MAX_LINE_BYTES = 16 * 2**20

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Source:
    """The lines of a batch file.

    Attributes:
        name: of the file, for people.
    """

    def __init__(self, file: BinaryIO, name: str, *, max_line_bytes: int = MAX_LINE_BYTES):
        """
        Args:
            file: can be read again from its start.
        """
        self.name = name
        self._file = file
        self._max_line_bytes = max_line_bytes

    @classmethod
    def open(cls, path: str) -> Self:
        """A file; ``-`` is standard input. What can be read only once is kept in a temporary file.

        Raises:
            InvalidParameter: standard input is closed, or the path a directory's.
            OSError: it cannot be read, or not be kept.
        """
        if path == "-":
            if sys.stdin is None:
                raise InvalidParameter("standard input is closed: name a file, or open it")
            return cls(_kept(sys.stdin.buffer), "standard input")
        if Path(path).is_dir():
            raise InvalidParameter(f"{path!r} is a directory: name a file of requests")
        file = Path(path).open("rb")  # noqa: SIM115 (close does it)
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return cls(file, path)
        with file:
            return cls(_kept(file), path)

    def __iter__(self) -> Iterator[Line | BadLine]:
        """Its lines from the first on; blank ones are left out, but counted."""
        for number, raw in self._raw_lines():
            if raw is None:
                yield too_long(number, self._max_line_bytes)
            elif raw.strip():
                yield read_line(number, raw)

    def is_same_file(self, path: str) -> bool:
        """Whether the path leads to it, too, by whatever name."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(path))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _raw_lines(self) -> Iterator[tuple[int, bytes | None]]:
        """Numbers and bytes; None for too many of them."""
        self._file.seek(0)
        if self._file.read(len(_BYTE_ORDER_MARK)) != _BYTE_ORDER_MARK:
            self._file.seek(0)
        number, limit = 0, self._max_line_bytes
        while piece := self._file.readline(limit + 1):
            number += 1
            if len(piece) <= limit or piece.endswith(b"\n"):
                yield number, piece
                continue
            while piece and not piece.endswith(b"\n"):
                piece = self._file.readline(limit)
            yield number, None


@dataclass(frozen=True)
class Contents:
    """What is in a batch file: the number of each line by what it is known by; and by its number
    the digest of what it asks, 0 where that is not known."""

    numbers: dict[Key, int]
    digests: "array[int]" = field(default_factory=lambda: array("Q"))

    def has_changed(self, key: Key, digest: int | None) -> bool:
        """Whether a line is known to ask something else than one of this digest did."""
        number = self.numbers[key]
        now = self.digests[number] if number < len(self.digests) else 0
        return bool(digest and now) and digest != now

    @classmethod
    def of(cls, source: Source) -> Self:
        """Reads all of it.

        Raises:
            InvalidParameter: two lines have the same custom_id.
        """
        numbers: dict[Key, int] = {}
        digests = array("Q")
        for line in source:
            first = numbers.setdefault(line.key, line.number)
            if first != line.number:
                raise InvalidParameter(
                    f"lines {first} and {line.number} of {source.name} have the same custom_id "
                    f"{line.custom_id!r:.100}: give each its own"
                )
            digests.extend([0] * (line.number - len(digests)))  # blank lines, and the one before 1
            digests.append(line.digest or 0)
        return cls(numbers, digests)


def _kept(stream: BinaryIO) -> BinaryIO:
    """All of it, in a file that is gone when it is closed."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 (whoever gets it closes it)
    try:
        shutil.copyfileobj(stream, file)
    except BaseException:
        file.close()
        raise
    return file
