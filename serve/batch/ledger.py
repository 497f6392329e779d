"""The file of results, which is the record of what is done as well."""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Self

from jaxinfer.errors import InvalidParameter
from serve.batch.lines import Key
from serve.batch.lock import open_alone
from serve.batch.results import BEGINNING, Result, read_result
from serve.batch.source import Contents


class Ledger:
    """A file to which results are appended, a whole line a write, by one process at a time.

    What a process that was killed had written is there, but for a part of one last line. Nothing
    is changed before ``begin``.

    Attributes:
        name: of the file, for people.
        num_torn_bytes: of that part.
    """

    def __init__(self, path: str, *, overwrite: bool = False, retry_errors: bool = False):
        """
        Args:
            overwrite: forget what is in the file.
            retry_errors: forget those results that are errors.

        Raises:
            InvalidParameter: it is no regular file.
            FileInUse: another process has it.
            OSError: it can be neither opened nor made.
        """
        self.name = path
        self.done: set[Key] = set()
        self.num_failed = 0
        self.num_torn_bytes = 0
        self._overwrite = overwrite
        self._retry_errors = retry_errors
        self._num_forgotten = 0
        self._end = 0
        self._is_dirty = False
        # A link stays one when the file is replaced.
        self._path = os.path.realpath(path)
        self._fd = open_alone(self._path, path)

    def read(self, contents: Contents, source: str) -> None:
        """Takes in what earlier runs have done.

        Args:
            source: name of the file that ``contents`` are of.

        Raises:
            InvalidParameter: the results are of other requests, or one is of what its line said
                before it was changed.
        """
        if self._overwrite:
            return
        for number, raw in self._lines():
            if not raw.endswith(b"\n"):
                self.num_torn_bytes = len(raw)
                break
            result = self._result(number, raw)
            problem = None
            if self._forgets(result):
                pass
            elif result.key not in contents.numbers:
                problem = f"which is not in {source}"
            elif result.key in self.done:
                problem = "which it has answered before"
            elif contents.has_changed(result.key, result.digest):
                problem = f"whose request in {source} was changed since"
            if problem is not None:
                if not result.is_ok:
                    problem += " (--retry-errors asks again where the result is an error)"
                raise self._not_ours(f"its line {number} answers {result.name}, {problem}")
            self._end += len(raw)
            if self._forgets(result):
                self._num_forgotten += 1
                continue
            self.done.add(result.key)
            self.num_failed += not result.is_ok

    def begin(self) -> None:
        """Leaves in the file what is to stay. Killed at any moment, it has lost no result."""
        if self._num_forgotten:
            self._leave_out_errors()
        else:
            os.ftruncate(self._fd, self._end)
        os.fsync(self._fd)
        _sync_directory_of(self._path)

    def append(self, raw: bytes) -> None:
        """As ``Results`` has it. Should the file not shrink again either, the next ``read`` knows
        the part for what it is."""
        num_written = 0
        try:
            while num_written < len(raw):
                num_written += os.pwrite(self._fd, raw[num_written:], self._end + num_written)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._fd, self._end)
            raise
        self._end += num_written
        self._is_dirty = True

    def sync(self) -> None:
        """As ``Results`` has it; for any thread.

        Raises:
            OSError: what was written may be lost, or the file was deleted.
        """
        if not self._is_dirty:
            return
        self._is_dirty = False
        os.fsync(self._fd)
        if os.fstat(self._fd).st_nlink == 0:
            raise FileNotFoundError(f"{self.name} was deleted while it was written")

    def close(self) -> None:
        """Another process may have it."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Those that begin as ours do, of the last perhaps a part only."""
        with open(self._fd, "rb", closefd=False) as file:
            file.seek(0)
            number = 0
            # Of another's file there may be no second line for gigabytes.
            while head := file.readline(len(BEGINNING)):
                number += 1
                if not BEGINNING.startswith(head):
                    raise self._not_ours(f"its line {number} is no line of results")
                yield number, head + file.readline()

    def _result(self, number: int, raw: bytes) -> Result:
        try:
            return read_result(raw)
        except ValueError as error:
            raise self._not_ours(f"its line {number} is no line of results") from error

    def _forgets(self, result: Result) -> bool:
        return self._retry_errors and not result.is_ok

    def _not_ours(self, problem: str) -> InvalidParameter:
        return InvalidParameter(
            f"{self.name} cannot be gone on with: {problem}; name another file for the results, or "
            "say --overwrite to lose these"
        )

    def _leave_out_errors(self) -> None:
        """Replaces the file by one without those results that are errors."""
        temporary = f"{self._path}.rewritten"
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with open(fd, "wb", closefd=False) as file:
                for raw in self._whole_lines():
                    if read_result(raw).is_ok:
                        file.write(raw)
                end = file.tell()
            os.fchmod(fd, stat.S_IMODE(os.fstat(self._fd).st_mode))
            os.fsync(fd)
            os.replace(temporary, self._path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd, self._end = fd, end

    def _whole_lines(self) -> Iterator[bytes]:
        return (raw for _, raw in self._lines() if raw.endswith(b"\n"))


def _sync_directory_of(path: str) -> None:
    """The name of a new file is in its directory, which not every file system can sync."""
    fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with suppress(OSError):
        os.fsync(fd)
    os.close(fd)
