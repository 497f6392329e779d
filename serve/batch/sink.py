"""Where results go, when it is not a file."""

import sys
from typing import BinaryIO, Protocol

from serve.batch.lines import Key


class Results(Protocol):
    """Where results go.

    Attributes:
        name: for people.
        done: lines that need no result any more.
        num_failed: of them, those whose result is an error.
    """

    name: str
    done: set[Key]
    num_failed: int

    def begin(self) -> None:
        """Before the first line."""

    def append(self, raw: bytes) -> None:
        """Writes one line; where that fails (OSError), nothing of it is left."""

    def sync(self) -> None:
        """Returns when what was written would outlive a power cut."""


class Pipe:
    """Standard output: what other runs have written there nobody knows."""

    def __init__(self, file: BinaryIO | None = None):
        self.name = "standard output"
        self.done: set[Key] = set()
        self.num_failed = 0
        self._file = file or sys.stdout.buffer

    def begin(self) -> None:
        """Nothing is there."""

    def append(self, raw: bytes) -> None:
        self._file.write(raw)
        self._file.flush()

    def sync(self) -> None:
        """A pipe outlives nothing."""
