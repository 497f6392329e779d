"""Whether a call that failed is made again, and when."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from serve.client.errors import (
    AlreadyExists,
    DeadlineExceeded,
    ResourceExhausted,
    ServerError,
    Unavailable,
)


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often and after how long; seconds.

    Attributes:
        max_attempts: 1 tries nothing twice.
        initial_backoff, multiplier, max_backoff: before attempt k + 1, a wait drawn uniformly from
            the upper half of ``min(max_backoff, initial_backoff * multiplier ** (k - 1))``.
        max_pushback: a server that wants to be left alone for longer is not asked again.
    """

    max_attempts: int = 5
    initial_backoff: float = 0.2
    multiplier: float = 2.0
    max_backoff: float = 10.0
    max_pushback: float = 60.0

    def backoff(self, num_failed: int, draw: float) -> float:
        """The wait after that many attempts; ``draw`` in [0, 1)."""
        longest = min(self.max_backoff, self.initial_backoff * self.multiplier ** (num_failed - 1))
        return longest * (0.5 + 0.5 * draw)


class Attempts:
    """The attempts at one call, which share its time.

    A call is repeated where the server is not there (UNAVAILABLE), or full and says when to come
    back (RESOURCE_EXHAUSTED with a pushback). After an answer may have been lost, ALREADY_EXISTS
    means that the server has not noticed yet: its request ends when it does.
    """

    def __init__(
        self,
        policy: RetryPolicy,
        timeout: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ):
        """``timeout``: seconds for all attempts and the waits between them; None: no end."""
        self._policy, self._clock, self._draw = policy, clock, draw
        self._deadline = None if timeout is None else clock() + timeout
        self._num_failed = 0
        self._may_be_lost = False

    def timeout(self) -> float | None:
        """Seconds for the attempt that begins now.

        Raises:
            DeadlineExceeded: none are left.
        """
        if self._deadline is None:
            return None
        remaining = self._deadline - self._clock()
        if remaining <= 0:
            raise DeadlineExceeded("the time given for the call has passed")
        return remaining

    def wait_after(self, error: ServerError) -> float:
        """Seconds until the next attempt.

        Raises:
            ServerError: ``error`` itself, because there is no next one.
        """
        self._num_failed += 1
        wait = self._wait(error)
        self._may_be_lost |= isinstance(error, Unavailable)
        if wait is None or self._num_failed >= self._policy.max_attempts:
            raise error
        if self._deadline is not None and self._clock() + wait >= self._deadline:
            raise error
        return wait

    def _wait(self, error: ServerError) -> float | None:
        if error.retry_after is not None and isinstance(error, Unavailable | ResourceExhausted):
            if not 0 <= error.retry_after <= self._policy.max_pushback:
                return None
            # Never earlier; not all at once either.
            return error.retry_after * (1 + 0.2 * self._draw())
        if isinstance(error, Unavailable) or (
            isinstance(error, AlreadyExists) and self._may_be_lost
        ):
            return self._policy.backoff(self._num_failed, self._draw())
        return None
