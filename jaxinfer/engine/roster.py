"""Who is being served, and what each of them is told."""

import logging
from collections.abc import Callable, Iterable

from jaxinfer.engine.inbox import Inbox
from jaxinfer.engine.job import Job
from jaxinfer.engine.request import OnEvents
from jaxinfer.engine.scheduler import Scheduler
from jaxinfer.engine.sequence import Family
from jaxinfer.errors import UnsatisfiableGuide
from jaxinfer.outputs import FinishReason, TokenEvent

_log = logging.getLogger(__name__)


class Roster:
    """The requests that an engine has taken up. Only its own thread looks at them.

    Attributes:
        jobs: of those that are not over.
    """

    def __init__(self, inbox: Inbox, scheduler: Scheduler, clock: Callable[[], float]):
        """``inbox``: keeps their names. ``scheduler``: has their sequences."""
        self._inbox = inbox
        self._scheduler = scheduler
        self._clock = clock
        self._timed: list[Job] = []
        self._outbox: dict[OnEvents, list[TokenEvent]] = {}
        self.jobs: dict[Family, Job] = {}

    def __len__(self) -> int:
        return len(self.jobs)

    @property
    def nearest_deadline(self) -> float | None:
        """On the engine's clock; None: there is none."""
        deadlines = [job.request.deadline for job in self._timed]
        return min((time for time in deadlines if time is not None), default=None)

    def take_up(self, jobs: Iterable[Job]) -> None:
        """More of them: their sequences join the queue."""
        for job in jobs:
            self.jobs[job.family] = job
            if job.request.deadline is not None:
                self._timed.append(job)
            for sequence in job.family.sequences:
                self._scheduler.add(sequence)

    def end_late_ones(self, now: float) -> None:
        """Ends those whose deadline has come."""
        for job in self._timed:
            if job.is_late(now):
                self.end(job, FinishReason.DEADLINE)
        self._timed = [job for job in self._timed if not job.is_over]

    def post(self, job: Job, event: TokenEvent) -> None:
        """Puts an event into the outbox; an output's last one ends its sequence."""
        self._outbox.setdefault(job.on_events, []).append(event)
        if event.finish_reason is not None:
            self._scheduler.finish(job.family.sequences[event.index])
        if job.is_over:
            del self.jobs[job.family]
            self._inbox.remove(job)

    def end(
        self, job: Job, reason: FinishReason, error: str | UnsatisfiableGuide | None = None
    ) -> None:
        """Ends what is still open of a request."""
        now = self._clock()
        for sequence in job.open_sequences:
            self.post(job, job.end(sequence, reason, now, error))

    def fail(self, job: Job, error: Exception) -> None:
        """Ends a request that its own tokens have brought to this."""
        if isinstance(error, UnsatisfiableGuide):
            self.end(job, FinishReason.ERROR, error)
            return
        _log.error("request %r failed", job.request.request_id, exc_info=error)
        self.end(job, FinishReason.ERROR, repr(error))

    def end_all(self, reason: FinishReason) -> None:
        """Nothing more is computed for anybody."""
        for job in tuple(self.jobs.values()):
            self.end(job, reason)

    def abandon_all(self, error: BaseException) -> None:
        """Tells everybody, also who was not taken up yet, without a look at any other books: those
        cannot be trusted any more."""
        for job in self._inbox.jobs():
            for sequence in job.open_sequences:
                event = job.end(sequence, FinishReason.ERROR, self._clock(), repr(error))
                self._outbox.setdefault(job.on_events, []).append(event)
            self._inbox.remove(job)
        self.jobs.clear()
        self._timed.clear()

    def deliver(self) -> None:
        """Empties the outbox: one call for each distinct ``on_events``."""
        outbox, self._outbox = self._outbox, {}
        for on_events, events in outbox.items():
            try:
                on_events(events)
            except Exception:
                _log.exception("on_events failed: its requests are aborted")
                for request_id in {event.request_id for event in events}:
                    self._inbox.abort(request_id)
