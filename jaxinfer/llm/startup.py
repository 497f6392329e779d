"""How long the phases of a start take."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Called with the phase, and how many of how many of its parts are done; from the threads that do
#: them, for phases that run side by side.
PhaseProgress = Callable[[str, int, int], None]


def no_phase_progress(phase: str, done: int, total: int) -> None:
    """For callers that do not show any."""


class StartupClock:
    """Seconds by phase; weights are loaded while programs are compiled."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("open", "load", "compile", "warm"), 0.0)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A phase lasts as long as its block."""
        since = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - since
