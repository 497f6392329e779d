"""Something that runs in a thread of its own while the caller does something else."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Generic, Self, TypeVar

from jaxinfer.checkpoint.load import Progress

Result = TypeVar("Result")


class _Stopped(Exception):
    """Nobody waits for the result any more."""


class Background(Generic[Result]):
    """A function under way beside a block of code; both report their progress.

        with Background(load, show_loading) as loading:
            programs = compile(loading.watched(show_compiling))
            model = loading.result()

    Whichever fails first stops the other at its next report, and its error is the one raised. The
    block is left only when the function has ended.
    """

    def __init__(self, function: Callable[[Progress], Result], progress: Progress):
        self._is_stopped = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=type(self).__name__)

        def report(done: int, total: int) -> None:
            if self._is_stopped.is_set():
                raise _Stopped
            progress(done, total)

        self._future = self._pool.submit(function, report)

    def watched(self, progress: Progress) -> Progress:
        """``progress`` for the block, which raises what the function raised once it has failed."""

        def report(done: int, total: int) -> None:
            if self._future.done():
                self._future.result()
            progress(done, total)

        return report

    def result(self) -> Result:
        """Waits for the function. To be called within the block."""
        return self._future.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_stopped.set()
        self._pool.shutdown()
