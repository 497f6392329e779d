"""The errands of an engine, one after the other."""

from collections import deque
from collections.abc import Collection, Iterable

from jaxinfer.engine.errand import Errand, WaitFor
from jaxinfer.engine.inbox import Inbox
from jaxinfer.engine.job import Job


class ErrandQueue:
    """Errands in the order in which they were asked for. Only the engine's thread looks at them."""

    def __init__(self, inbox: Inbox):
        self._inbox = inbox
        self._errands: deque[Errand] = deque()

    def __bool__(self) -> bool:
        return bool(self._errands)

    def extend(self, errands: Iterable[Errand]) -> None:
        """More of them, that came through the inbox."""
        self._errands.extend(errands)

    @property
    def holds_new_back(self) -> bool:
        """The first one waits for all that were begun: else, for ever."""
        return bool(self._errands) and self._errands[0].wait_for is WaitFor.BEGUN

    def is_due(self, now: float, jobs: Collection[Job]) -> bool:
        """The first one may run, once what is in flight has landed. Late and cancelled ones before
        it are over.

        Args:
            jobs: of all requests that the engine has.
        """
        while self._errands:
            errand = self._errands[0]
            if errand.is_late(now):
                errand.fail(TimeoutError(f"{errand.wait_for.value} did not end in time"))
            elif not errand.future.cancelled():
                return _has_ended(errand.wait_for, jobs)
            self._pop()
        return False

    def run_next(self) -> None:
        """Runs the first one."""
        self._errands[0].run()
        self._pop()

    def fail_all(self, error: Exception) -> None:
        """None of them will run."""
        while self._errands:
            self._errands[0].fail(error)
            self._pop()

    def _pop(self) -> None:
        self._errands.popleft()
        self._inbox.errand_is_over()


def _has_ended(what: WaitFor, jobs: Collection[Job]) -> bool:
    """But for what is in flight."""
    match what:
        case WaitFor.FLIGHT:
            return True
        case WaitFor.BEGUN:
            return not any(job.family.is_begun for job in jobs)
        case WaitFor.ALL:
            return not jobs
