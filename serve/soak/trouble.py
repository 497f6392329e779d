"""A device that fails, dawdles and hangs, by chance, but never twice in a row."""

import asyncio
import random

from jaxinfer.engine.engine import Engine
from jaxinfer.engine.faults import FaultyRunner
from serve.soak.record import Record

_ERRORS = (RuntimeError, ValueError, OSError, KeyError)

#: Finished steps between two failures: a device that finishes none any more ends its server.
_STEPS_BETWEEN = 4


class Trouble:
    """Wraps the runner of an engine that has not begun to take steps."""

    def __init__(self, engine: Engine, record: Record, chance: random.Random):
        self._engine, self._record, self._random = engine, record, chance
        self._faults = FaultyRunner(engine.runner)
        self._failed_at = -_STEPS_BETWEEN
        engine.runner = self._faults

    async def make(self, interval: float) -> None:
        """Goes on until it is cancelled, with so many seconds between two, more or less."""
        try:
            while True:
                await asyncio.sleep(interval * self._random.uniform(0.5, 1.5))
                await self._random.choice([self._fail, self._dawdle, self._hang])()
                self._record.num_faults += 1
        finally:
            self._faults.go_on()
            self._faults.delay = 0.0

    async def _fail(self) -> None:
        num_steps = self._engine.stats.num_read_steps
        if self._faults.is_armed or num_steps < self._failed_at + _STEPS_BETWEEN:
            return
        self._failed_at = num_steps
        where = self._random.choice(["launch", "sample", "read"])
        error = self._random.choice(_ERRORS)(f"a fault that was asked for in {where}")
        self._faults.fail_next(where, error)

    async def _dawdle(self) -> None:
        self._faults.delay = self._random.uniform(0.05, 0.5)
        await asyncio.sleep(self._random.uniform(0, 3))
        self._faults.delay = 0.0

    async def _hang(self) -> None:
        self._faults.hang()
        await asyncio.sleep(self._random.uniform(0, 2))
        self._faults.go_on()
