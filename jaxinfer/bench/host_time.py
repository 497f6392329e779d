"""The host's share of a step: the time in which it was not waiting for the device."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxinfer.engine.engine import Engine
from jaxinfer.engine.step import StepPlan, StepResult


class HostTimer:
    """A runner that does what another does, and looks at the clock.

    From one result read to the next, all time that passed outside ``read`` is the host's. Only
    steps whose rows all decode are counted. With one step always ahead, the device computes
    meanwhile: host time costs speed only where it exceeds the device's.
    """

    def __init__(self, runner: Any):
        self._runner = runner
        self._is_decode: dict[int, bool] = {}
        self._last_read: float | None = None
        self.seconds = 0.0
        self.num_steps = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def launch(self, plan: StepPlan) -> Any:
        """See ``Runner.launch``."""
        pending = self._runner.launch(plan)
        self._is_decode[id(pending)] = plan.is_decode_only
        return pending

    def read(self, pending: Any) -> StepResult:
        """See ``Runner.read``."""
        begin = time.perf_counter()
        result = self._runner.read(pending)
        # What was launched before this timer came is not known here.
        if self._is_decode.pop(id(pending), False) and self._last_read is not None:
            self.seconds += begin - self._last_read
            self.num_steps += 1
        self._last_read = time.perf_counter()
        return result

    @property
    def milliseconds_per_step(self) -> float | None:
        """None where no step was counted."""
        return 1e3 * self.seconds / self.num_steps if self.num_steps else None


@contextmanager
def timed_host(engine: Engine) -> Iterator[HostTimer]:
    """Times the engine's steps in this block; the engine must be idle at its borders."""
    runner = engine.runner
    timer = HostTimer(runner)
    engine.runner = timer
    try:
        yield timer
    finally:
        engine.runner = runner
