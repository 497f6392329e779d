"""How long the phases of a start take."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

#: Called with the phase, and how many of how many of its parts are done.
PhaseProgress = Callable[[str, int, int], None]


def no_phase_progress(phase: str, done: int, total: int) -> None:
    """For callers that do not show any."""


class StartupClock:
    """Seconds by phase, in the order in which they ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Times what happens inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = time.perf_counter() - start
