"""A function that has to run between two steps, with nothing in flight on the device."""

from collections.abc import Callable
from concurrent.futures import Future
from enum import Enum
from typing import Any


class WaitFor(Enum):
    """What has to end before it runs.

    Attributes:
        FLIGHT: the step that is in flight.
        BEGUN: the requests that were begun, too. The others wait meanwhile.
        ALL: all requests.
    """

    FLIGHT = "the step in flight"
    BEGUN = "the requests that were begun"
    ALL = "all requests"


class Errand:
    """The function and its future, which somebody in another thread may wait for, or cancel.

    Attributes:
        deadline: on the engine's clock, after which it no longer begins; None is never.
    """

    def __init__(
        self, function: Callable[[], Any], wait_for: WaitFor, deadline: float | None = None
    ):
        self.wait_for, self.deadline = wait_for, deadline
        self.future: Future[Any] = Future()
        self._function = function

    def is_late(self, now: float) -> bool:
        return self.deadline is not None and now >= self.deadline

    def run(self) -> None:
        """Runs it, unless it was cancelled; whatever it raises is for who waits."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self._function()
        except BaseException as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)

    def fail(self, error: Exception) -> None:
        """It will not run."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)
