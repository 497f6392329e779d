"""How long the phases of a start take."""

import time
from collections.abc import Callable

#: Called with the phase, and how many of how many of its parts are done.
PhaseProgress = Callable[[str, int, int], None]


def no_phase_progress(phase: str, done: int, total: int) -> None:
    """For callers that do not show any."""


class StartupClock:
    """Seconds by phase, in the order in which they ran; a phase lasts until the next begins."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._phase: str | None = None
        self._since = 0.0

    def begin(self, phase: str) -> None:
        """Ends the phase before this one."""
        self.end()
        self._phase, self._since = phase, time.perf_counter()

    def end(self) -> None:
        """The last phase is over."""
        if self._phase is not None:
            self.seconds[self._phase] = time.perf_counter() - self._since
            self._phase = None
