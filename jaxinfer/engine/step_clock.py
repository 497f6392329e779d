"""How long the steps of an engine take."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jaxinfer.engine.stats import EngineStats

#: A landing that the host waited for during less than this part of the step tells when the host
#: looked, not when the device had ended.
_LEAST_WAIT = 0.1


class StepClock:
    """Tells the host's seconds from the device's, and how many steps a deadline leaves time for.

    Attributes:
        shortest_step: the least seconds that any step has taken so far, decode steps of one call
            their share of it; None before the first landing. Only of steps of which the host knows
            when they began. It is no bound: later steps may take less.
    """

    def __init__(self, now: Callable[[], float], stats: EngineStats):
        """``now``: seconds, what deadlines are on. ``stats``: where the seconds are counted."""
        self._now = now
        self._stats = stats
        self._launched_at: deque[float] = deque()  # of what is in flight
        self._waited = 0.0  # for the device, in this step
        self._landed_at = now()
        self._was_awaited = True  # that landing: the device ended then, and not before
        self._decode_seconds: float | None = None  # of one decode step
        self.shortest_step: float | None = None

    @contextmanager
    def step(self) -> Iterator[None]:
        """The host takes a step."""
        began, self._waited = self._now(), 0.0
        yield
        self._stats.host_seconds += self._now() - began - self._waited

    def launched(self) -> None:
        """A step goes to the device."""
        self._launched_at.append(self._now())

    @contextmanager
    def landing(self, num_steps: int) -> Iterator[None]:
        """The host waits for the oldest of those that were launched, of so many decode steps."""
        asked_at = self._now()
        yield
        now = self._now()
        self._waited += now - asked_at
        self._stats.num_read_steps += 1
        launched_at = self._launched_at.popleft()
        seconds = now - max(launched_at, self._landed_at)
        self._stats.device_seconds += seconds
        if self._was_awaited or launched_at >= self._landed_at:
            shortest, step = self.shortest_step, seconds / num_steps
            self.shortest_step = step if shortest is None else min(shortest, step)
        self._was_awaited = now - asked_at > _LEAST_WAIT * seconds
        self._decode_seconds = (now - self._landed_at) / num_steps
        self._landed_at = now

    def forget_launched(self) -> None:
        """What is in flight will not land."""
        self._launched_at.clear()

    def steps_until(self, deadline: float, *, most: int) -> int:
        """How many decode steps there is time for, with one call under way; at least one."""
        if not self._decode_seconds:
            return 1
        steps = (deadline - self._now()) / (2 * self._decode_seconds)
        # Cut before it is an integer: the quotient of a far deadline may be infinite.
        return max(1, int(min(steps, most)))
