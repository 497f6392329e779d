"""A file that one process has to itself."""

import fcntl
import os
import stat
from contextlib import suppress

from jaxinfer.errors import InvalidParameter, JaxInferError


class FileInUse(JaxInferError):
    """Another process writes to the file."""


def open_alone(path: str, name: str) -> int:
    """A descriptor of the file that nobody else has, and that the path leads to.

    Args:
        name: of the file, for people.

    Raises:
        InvalidParameter: it is no regular file.
        FileInUse: another process has it.
        OSError: it can be neither opened nor made.
    """
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise InvalidParameter(
                    f"{name} is no regular file: name one for the results, or - for standard output"
                )
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise FileInUse(
                    f"another process is writing to {name}: wait for it, or name another file"
                ) from error
            if _leads_to(path, fd):
                return fd
        except BaseException:
            os.close(fd)
            raise
        # It was replaced between opening and locking.
        os.close(fd)


def _leads_to(path: str, fd: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.stat(path), os.fstat(fd))
    return False
