"""A runner that fails when it is told to: what reliability is proved with."""

import threading
import time
from collections import deque
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from jaxinfer.engine.limits import CacheGroup, EngineLimits
from jaxinfer.engine.step import Runner, StepPlan, StepResult
from jaxinfer.sampling_params import SamplingParams


class FaultyRunner:
    """Another runner, with switches. All of them may be set from any thread.

    Attributes:
        delay: seconds that each step takes longer.
        is_hanging: a step waits for ``go_on``.
        fail_always: raised by each ``launch``, until it is None again.
    """

    def __init__(self, runner: Runner):
        self.delay = 0.0
        self.is_hanging = False
        self.fail_always: BaseException | None = None
        self._runner = runner
        self._failures: dict[str, deque[BaseException]] = {
            name: deque() for name in ("launch", "sample", "read", "reset")
        }
        self._goes_on = threading.Event()
        self._goes_on.set()

    def fail_next(self, where: str, error: BaseException) -> None:
        """The next call of ``where`` ("launch", "sample", "read" or "reset") that nothing else
        fails raises this."""
        self._failures[where].append(error)

    @property
    def is_armed(self) -> bool:
        """A failure that was asked for has not happened yet."""
        return any(self._failures.values())

    def hang(self) -> None:
        """From now on no step is finished."""
        self._goes_on.clear()

    def go_on(self) -> None:
        """Steps are finished again."""
        self._goes_on.set()

    def launch(self, plan: StepPlan) -> Any:
        """As the runner's own."""
        if self.fail_always is not None:
            raise self.fail_always
        self._fail_if_told("launch")
        return self._runner.launch(plan)

    def sample(self, pending: Any, allowed: Mapping[int, np.ndarray]) -> None:
        """As the runner's own."""
        self._fail_if_told("sample")
        self._runner.sample(pending, allowed)

    def read(self, pending: Any) -> StepResult:
        """As the runner's own."""
        time.sleep(self.delay)
        if not self._goes_on.is_set():
            self.is_hanging = True
            self._goes_on.wait()
            self.is_hanging = False
        self._fail_if_told("read")
        return self._runner.read(pending)

    def reset(self) -> None:
        """As the runner's own."""
        self._fail_if_told("reset")
        self._runner.reset()

    @property
    def groups(self) -> tuple[CacheGroup, ...]:
        return self._runner.groups

    @property
    def limits(self) -> EngineLimits:
        return self._runner.limits

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        return self._runner.eos_token_ids

    def slot_sampling(
        self,
        params: SamplingParams,
        *,
        index: int,
        max_tokens: int,
        banned_token_ids: Collection[int] = (),
    ) -> object:
        """As the runner's own."""
        return self._runner.slot_sampling(
            params, index=index, max_tokens=max_tokens, banned_token_ids=banned_token_ids
        )

    def _fail_if_told(self, where: str) -> None:
        if self._failures[where]:
            raise self._failures[where].popleft()
