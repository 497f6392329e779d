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

    When one fails, the other is stopped at its next report. The block is left only when the
    function has ended, and nothing of it is held afterwards.
    """

    def __init__(self, function: Callable[[Progress], Result], progress: Progress):
        self._function, self._progress = function, progress

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
        is_stopped, progress = threading.Event(), self._progress

        def report(done: int, total: int) -> None:
            if is_stopped.is_set():
                raise _Stopped
            progress(done, total)

        self._is_stopped = is_stopped
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=type(self).__name__)
        self._future = self._pool.submit(self._function, report)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_stopped.set()
        self._pool.shutdown()
        failure = self._future.exception()
        # The frames of a failure hold what was loaded: an error that is handled must free it.
        del self._future, self._function
        if error is None or failure is None or failure is error:
            return
        if not isinstance(failure, _Stopped):
            error.add_note(f"meanwhile, in the background: {type(failure).__name__}: {failure}")
