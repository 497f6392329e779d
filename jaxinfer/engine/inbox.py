"""Where other threads and the engine's own meet: all its locking is in this file."""

import threading
from dataclasses import dataclass, field

from jaxinfer.engine.errand import Errand
from jaxinfer.engine.job import Job
from jaxinfer.engine.limits import EngineLimits
from jaxinfer.errors import Asleep, CapacityError, DuplicateRequest, EngineClosed


@dataclass
class Mail:
    """What was asked for since the engine looked last."""

    submitted: list[Job] = field(default_factory=list)
    aborted: list[Job] = field(default_factory=list)
    forget_prefixes: bool = False
    errands: list[Errand] = field(default_factory=list)


class Inbox:
    """The requests that live in an engine, and what has happened to them since it looked last."""

    def __init__(self, limits: EngineLimits):
        self._limits = limits
        self._changed = threading.Condition()
        self._jobs: dict[str, Job] = {}
        self._mail = Mail()
        self._is_closed = False
        self.is_asleep = False
        self._num_errands = 0  # that were sent and are not over

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def submit(self, job: Job) -> None:
        """Takes a request in.

        Raises:
            Asleep, CapacityError, DuplicateRequest, EngineClosed: as ``Engine.submit``.
        """
        request_id = job.request.request_id
        with self._changed:
            if self._is_closed:
                raise EngineClosed(f"request {request_id!r}: the engine was closed")
            if self.is_asleep:
                raise Asleep(f"request {request_id!r}: the model sleeps; wake it, or ask another")
            if request_id in self._jobs:
                raise DuplicateRequest(f"request_id = {request_id!r} is in use: take another")
            self._refuse_beyond_limits(job)
            self._jobs[request_id] = job
            self._mail.submitted.append(job)
            self._changed.notify_all()

    def num_ahead(self, deadline: float, priority: int) -> int:
        """How many of those of which nothing was computed yet will be begun before one that comes
        now. Those that were aborted, or whose own deadline is sooner, do not count.
        """
        with self._changed:
            aborted = set(self._mail.aborted)
            return sum(
                not job.is_scheduled
                and job.request.priority >= priority
                and not job.is_late(deadline)
                and job not in aborted
                for job in self._jobs.values()
            )

    def abort(self, request_id: str) -> bool:
        """Notes the wish to end a request; False when there is none of that id."""
        with self._changed:
            if request_id not in self._jobs:
                return False
            self._mail.aborted.append(self._jobs[request_id])
            self._changed.notify_all()
            return True

    def send(self, errand: Errand) -> None:
        """Takes an errand in.

        Raises:
            EngineClosed: nobody will run it.
        """
        with self._changed:
            if self._is_closed:
                raise EngineClosed("the engine was closed: nothing runs between its steps")
            self._mail.errands.append(errand)
            self._num_errands += 1
            self._changed.notify_all()

    def errand_is_over(self) -> None:
        """One of them has run, or will not."""
        with self._changed:
            self._num_errands -= 1

    def set_asleep(self, is_asleep: bool) -> None:
        """Whether requests are refused."""
        with self._changed:
            self.is_asleep = is_asleep

    def close(self) -> None:
        """Nothing more is taken in."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def wait_for_work(self) -> bool:
        """Blocks while there is nothing to do; False once closed."""
        with self._changed:
            self._changed.wait_for(self._has_work)
            return not self._is_closed

    def forget_prefixes(self) -> None:
        """Notes the wish for an empty prefix cache."""
        with self._changed:
            self._mail.forget_prefixes = True

    def take(self) -> Mail:
        """What was asked for since the last time."""
        with self._changed:
            mail, self._mail = self._mail, Mail()
            return mail

    def jobs(self) -> list[Job]:
        with self._changed:
            return list(self._jobs.values())

    def remove(self, job: Job) -> None:
        """The request is over; its id is free again."""
        with self._changed:
            del self._jobs[job.request.request_id]

    def _has_work(self) -> bool:
        return bool(self._jobs or self._num_errands or self._is_closed)

    def _refuse_beyond_limits(self, job: Job) -> None:
        """The queue: requests of which nothing was computed yet."""
        if (self._limits.max_waiting_requests, self._limits.max_waiting_tokens) == (None, None):
            return
        waiting = [queued for queued in self._jobs.values() if not queued.is_scheduled]
        num_tokens = job.family.prompt_len + sum(queued.family.prompt_len for queued in waiting)
        for name, value, limit in (
            ("requests", len(waiting) + 1, self._limits.max_waiting_requests),
            ("prompt tokens", num_tokens, self._limits.max_waiting_tokens),
        ):
            if limit is not None and value > limit:
                raise CapacityError(
                    f"the queue is full: {value} {name} would wait, at most {limit} may; "
                    "try again later"
                )
