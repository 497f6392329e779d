"""Notices a device that no longer finishes steps."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from jaxinfer.engine.engine import Engine

#: Seconds between two looks.
_INTERVAL = 0.25


class Watchdog:
    """Tells when requests have waited too long for a step, and when steps go on."""

    def __init__(
        self,
        engine: Engine,
        *,
        patience: float,
        on_change: Callable[[bool], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ):
        """
        Args:
            patience: seconds for one step.
            on_change: called with whether steps are finished.
        """
        self._engine, self._patience = engine, patience
        self._on_change, self._clock = on_change, clock
        self._num_steps = -1
        self._progress_at = clock()
        self.is_well = True

    async def run(self) -> None:
        """Looks again and again, until it is cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(_INTERVAL)

    async def look(self) -> None:
        """Once."""
        now, num_steps = self._clock(), self._engine.stats.num_steps
        # A step that is launched waits for the one before it: when that hangs, so does the count.
        if num_steps != self._num_steps or not self._engine.num_unfinished:
            self._num_steps, self._progress_at = num_steps, now
        is_well = now - self._progress_at < self._patience
        if is_well != self.is_well:
            self.is_well = is_well
            await self._on_change(is_well)
