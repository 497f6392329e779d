"""The engine: requests in, events out, one step after the other."""

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from jaxinfer.engine.bad_words import read_bad_words
from jaxinfer.engine.constraint import Constraint
from jaxinfer.engine.constraint_maker import ConstraintMaker
from jaxinfer.engine.errand import Errand, WaitFor
from jaxinfer.engine.errand_queue import ErrandQueue
from jaxinfer.engine.inbox import Inbox
from jaxinfer.engine.job import Job
from jaxinfer.engine.request import (
    OnEvents,
    Request,
    clipped_max_tokens,
    verify_prompt,
    with_verified_schedule,
)
from jaxinfer.engine.scheduler import Scheduler
from jaxinfer.engine.sequence import Family, Sequence
from jaxinfer.engine.stats import EngineStats
from jaxinfer.engine.step import Row, Runner, StepPlan
from jaxinfer.engine.step_clock import StepClock
from jaxinfer.engine.stream import LogprobTable, OutputStream
from jaxinfer.errors import DeadlinePassed, EngineClosed, StepFailed, UnsatisfiableGuide
from jaxinfer.guides import CompiledGuide
from jaxinfer.outputs import FinishReason, TokenEvent
from jaxinfer.structured_outputs import Guide
from jaxinfer.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

Given = TypeVar("Given")
Result = TypeVar("Result")

#: So many failed steps, with none between them that was finished, end an engine.
MAX_FAILURES = 3
#: Seconds between two looks at the books of an engine that has nothing to do.
_AUDIT_INTERVAL = 10.0


class Engine:
    """Serves requests on one runner.

    ``submit``, ``abort`` and ``close`` may be called from any thread, also from ``on_events``.
    Steps are taken by whoever calls ``step``, or by the thread that ``start`` starts; there events
    are delivered.

    Attributes:
        ended: done when the thread that ``start`` started takes no more steps: without a result
            after ``close``, else with the exception that the engine failed with.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        lookahead: bool = True,
        debug_checks: bool = False,
    ):
        """
        Args:
            tokenizer: turns tokens into text; None leaves every text empty.
            clock: seconds; deadlines and metrics are on it.
            lookahead: launch a step before the one before it was read.
            debug_checks: assert the scheduler's invariants in every step.
        """
        self.runner = runner
        self._tokenizer = tokenizer
        self._logprobs = LogprobTable(tokenizer)
        self._constraints = ConstraintMaker(
            tokenizer,
            eos_token_ids=runner.eos_token_ids,
            vocab_size=runner.limits.vocab_size,
        )
        self._clock = clock
        self._lookahead = lookahead
        self._debug_checks = debug_checks
        self._scheduler = Scheduler(runner.groups, runner.limits)
        self._step_clock = StepClock(clock, self._scheduler.stats)
        self._inbox = Inbox(runner.limits)
        self._errands = ErrandQueue(self._inbox)
        self._arrivals = itertools.count()
        self._in_flight: tuple[StepPlan, Any] | None = None
        self._outbox: dict[OnEvents, list[TokenEvent]] = {}
        self._jobs: dict[Family, Job] = {}
        self._timed: list[Job] = []
        self._turn = threading.RLock()  # held by whoever takes a step
        self._in_turn = False
        self._thread: threading.Thread | None = None
        self._num_failures = 0  # since a step was finished
        self._audited_at = clock()
        self.ended: Future[None] = Future()
        self.ended.set_running_or_notify_cancel()  # nobody who waits for it can cancel it

    def submit(self, request: Request, on_events: OnEvents) -> None:
        """Takes a request in; each of its n outputs will end with exactly one last event.

        ``on_events`` gets lists of events in the order in which they happened. Requests that were
        submitted with the same callable get the events of a step in one call.

        Raises:
            InvalidPrompt, InvalidParameter, PromptTooLong: the request cannot be served as it is.
            UnsatisfiableGuide: no text matches its structured outputs, or none that its other
                parameters allow.
            Unsupported: structured outputs, and llguidance is not installed.
            CapacityError: it asks for more than the page pool holds, or the queue is full.
            DeadlinePassed: as ``require_time``.
            DuplicateRequest: its id is in use.
            EngineClosed: after ``close``.
            Asleep: after ``fall_asleep``.
        """
        request = with_verified_schedule(request)
        limits, params = self.runner.limits, request.params
        prompt_len = len(request.prompt_token_ids)
        params.verify(vocab_size=limits.vocab_size, prompt_len=prompt_len, limits=limits.request)
        verify_prompt(request.prompt_token_ids, limits.vocab_size)
        max_tokens = clipped_max_tokens(prompt_len, params.max_tokens, limits, self.runner.groups)
        self.require_time(request.deadline)
        bad_words = read_bad_words(params, self._tokenizer)
        banned = frozenset() if bad_words is None else bad_words.always
        constraints = self._constraints.of(request, bad_words)
        family = Family(
            request,
            arrival=next(self._arrivals),
            samplings=[
                self.runner.slot_sampling(
                    params, index=index, max_tokens=max_tokens, banned_token_ids=banned
                )
                for index in range(params.n)
            ],
            max_tokens=max_tokens,
            num_groups=len(self.runner.groups),
            constraints=constraints,
        )
        streams = [OutputStream(params, self._tokenizer) for _ in range(params.n)]
        self._inbox.submit(Job(family, streams, self._logprobs, on_events, self._clock()))

    def require_time(self, deadline: float | None) -> None:
        """Refuses what has no chance beside the requests that are here.

        They are why there is a step to wait for. An engine without any takes what comes: only so
        does it learn that steps have become shorter than all that it has seen.

        Args:
            deadline: seconds on the engine's clock; None is never.

        Raises:
            DeadlinePassed: it leaves less time than the shortest step so far has taken.
        """
        shortest = self._step_clock.shortest_step
        if deadline is None or shortest is None or not self._inbox:
            return
        left = deadline - self._clock()
        if left < shortest:
            raise DeadlinePassed(
                f"{1000 * max(left, 0.0):.1f} ms are left until the deadline, and no step has yet "
                f"taken less than {1000 * shortest:.1f} ms: give the request more time"
            )

    def begin_guide(self, guide: Guide) -> "Future[CompiledGuide]":
        """Begins to compile what a request's outputs are to match, for ``Request.guide``.

        ``submit`` does it where nobody did before, and waits for it.

        Raises:
            InvalidParameter: there is no tokenizer.
            CapacityError, EngineClosed: as ``GuideCompiler.submit``.
        """
        return self._constraints.guides.submit(guide)

    def abort(self, request_id: str) -> bool:
        """Ends a request with ABORT at the next step; False when there is none of that id."""
        return self._inbox.abort(request_id)

    def forget_prefixes(self) -> None:
        """From the next step on, no prompt finds anything in the prefix cache that is there now."""
        self._inbox.forget_prefixes()

    def between_steps(
        self,
        function: Callable[[], Result],
        *,
        wait_for: WaitFor = WaitFor.FLIGHT,
        timeout: float | None = None,
    ) -> "Future[Result]":
        """Has the thread that takes the steps call ``function`` when nothing is in flight.

        Such calls are made one after the other, in the order in which they were asked for. While
        one waits for requests that were begun, no other request is.

        Args:
            timeout: seconds after which it no longer begins, and its future has a TimeoutError;
                looked at between steps.

        Returns:
            a future with what it returns or raises; EngineClosed where the engine ended before.

        Raises:
            EngineClosed: after ``close``.
        """
        deadline = None if timeout is None else self._clock() + timeout
        errand = Errand(function, wait_for, deadline)
        self._inbox.send(errand)
        return errand.future

    @property
    def is_asleep(self) -> bool:
        """Requests are refused, because the model sleeps."""
        return self._inbox.is_asleep

    def fall_asleep(self) -> None:
        """Takes no requests until it wakes; those that are here go on."""
        self._inbox.set_asleep(True)

    def wake(self) -> None:
        """Takes requests again."""
        self._inbox.set_asleep(False)

    @property
    def has_thread(self) -> bool:
        """Steps are taken by a thread of its own."""
        return self._thread is not None

    def start(self) -> None:
        """Starts the one thread that takes steps whenever there is work."""
        if self._inbox.is_closed:
            raise EngineClosed("the engine was closed: make a new one")
        assert self._thread is None, "started twice"
        self._thread = threading.Thread(target=self._run, name="jaxinfer-engine", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends all requests with ABORT and takes no new ones; a second call does nothing."""
        self._inbox.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._constraints.close()
        with self._turn:
            if not self._in_turn:  # else the step that called back does it
                self._end_all()

    @property
    def is_closed(self) -> bool:
        """Whether it takes nothing more, because of ``close`` or of a failure of its own."""
        return self._inbox.is_closed

    @property
    def stats(self) -> EngineStats:
        return self._scheduler.stats

    @property
    def num_running(self) -> int:
        """Sequences in slots."""
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._scheduler.waiting)

    @property
    def num_unfinished(self) -> int:
        """Requests."""
        return len(self._inbox)

    @property
    def page_usage(self) -> float:
        """The fraction of pages in use, of the layer group that has the fewest left."""
        return max(pool.num_used / (pool.num_pages - 1) for pool in self._scheduler.tables.pools)

    def step(self) -> bool:
        """Takes one step and delivers its events. True while there is more to do.

        Once the engine is closed, there are no more steps.
        """
        with self._turn:
            if not self._inbox.is_closed:
                self._in_turn = True
                try:
                    with self._step_clock.step():
                        self._take_step()
                        self._deliver()
                except BaseException as error:
                    self._die(error)
                    raise
                finally:
                    self._in_turn = False
            if self._inbox.is_closed:
                self._end_all()
            return bool(self._inbox or self._in_flight or self._errands)

    def _run(self) -> None:
        try:
            while self._inbox.wait_for_work():
                self.step()
                self._audit()
        except BaseException as error:  # the requests were told
            _log.exception("the engine failed and is closed")
            self.ended.set_exception(error)
        else:
            self.ended.set_result(None)

    def _audit(self) -> None:
        """Looks at the books, now and then, while nobody waits; wrong ones end the engine."""
        now = self._clock()
        with self._turn:
            if now - self._audited_at < _AUDIT_INTERVAL or self._jobs:
                return
            self._audited_at = now
            try:
                self._scheduler.check()
            except BaseException as error:
                self._die(error)
                raise

    # One step.

    def _take_step(self) -> None:
        now = self._clock()
        self._receive(now)
        try:
            while self._errands.is_due(now, self._jobs.values()):
                self._land_all()
                self._errands.run_next()
                self._receive(now)  # what it has asked for
            self._scheduler.admits_new = not self._errands.holds_new_back
            if self._lookahead:
                self._advance_ahead(now)
            else:
                self._advance(now)
        except StepFailed as error:
            self._recover(error)
        if self._debug_checks:
            self._scheduler.check()

    def _advance(self, now: float) -> None:
        """The plain loop: one step, launched, sampled and read."""
        launched = self._launch(now)
        if launched is not None:
            self._sample(*launched)
            self._land(*launched)
        assert launched or not self._jobs, "nothing to do, yet not done"

    def _advance_ahead(self, now: float) -> None:
        """The same, one step ahead: the host works while the device does.

        Where some row's next token depends on the one in flight, sampling waits for that to be
        read: the device runs the model meanwhile.
        """
        launched, previous = self._launch(now), self._in_flight
        self._in_flight = launched
        waits = launched is not None and any(self._constrained(launched[0]))
        if launched is not None and not waits:
            self._sample(*launched)
        if previous is not None:
            self._land(*previous)
        if launched is not None and waits:
            self._sample(*launched)
        assert launched or previous or not self._jobs, "nothing to do, yet not done"

    def _launch(self, now: float) -> tuple[StepPlan, Any] | None:
        plan = self._scheduler.plan(self._max_steps())
        if plan is None:
            return None
        for admission in plan.admissions:
            sequence = self._scheduler.slots.owner(admission.slot, admission.generation)
            assert sequence is not None
            self._jobs[sequence.family].scheduled(now)
        self._step_clock.launched()
        return plan, _on_device(self.runner.launch, plan)

    def _sample(self, plan: StepPlan, pending: Any) -> None:
        """Starts the sampling of a launched step; all tokens before it were read."""
        allowed = {}
        for row, constraint, sequence in self._constrained(plan):
            job = self._jobs[sequence.family]
            try:
                allowed_W = constraint.allowed(sequence.generated)
            except Exception as error:
                self._fail(job, error)
                continue
            if allowed_W is None:
                continue
            if allowed_W.any():
                allowed[row.slot] = allowed_W
            else:
                self._post(job, job.end(sequence, FinishReason.STOP, self._clock()))
        _on_device(partial(self.runner.sample, pending), allowed)

    def _constrained(self, plan: StepPlan) -> Iterator[tuple[Row, Constraint, Sequence]]:
        """The rows whose next token depends on those before, but for those that have ended."""
        for row in plan.rows:
            sequence = self._scheduler.slots.owner(row.slot, row.generation)
            if row.samples and sequence is not None and sequence.constraint is not None:
                yield row, sequence.constraint, sequence

    def _land(self, plan: StepPlan, pending: Any) -> None:
        with self._step_clock.landing(plan.num_steps):
            result = _on_device(self.runner.read, pending)
        self._num_failures = 0
        now = self._clock()
        for progress in self._scheduler.commit(plan, result):
            job = self._jobs.get(progress.sequence.family)
            if job is None:  # another sample of the request has just failed
                continue
            try:
                event = job.advance(progress, result, now)
            except Exception as error:
                self._fail(job, error)
                continue
            if event is not None:
                self._post(job, event)

    def _land_all(self) -> None:
        """Reads what is in flight; nothing is, afterwards."""
        if self._in_flight is not None:
            previous, self._in_flight = self._in_flight, None
            self._land(*previous)

    def _max_steps(self) -> int | None:
        """How many decode steps the nearest deadline leaves time for; None: there is none."""
        deadlines = [job.request.deadline for job in self._timed]
        nearest = min((time for time in deadlines if time is not None), default=None)
        if nearest is None:
            return None
        return self._step_clock.steps_until(nearest, most=self.runner.limits.decode_steps[-1])

    # What happens to requests.

    def _receive(self, now: float) -> None:
        mail = self._inbox.take()
        if mail.forget_prefixes:
            self._scheduler.tables.forget_prefixes()
        self._errands.extend(mail.errands)
        for job in mail.submitted:
            self._jobs[job.family] = job
            for sequence in job.family.sequences:
                self._scheduler.add(sequence)
        self._timed += [job for job in mail.submitted if job.request.deadline is not None]
        for job in mail.aborted:
            self._end(job, FinishReason.ABORT)
        for job in self._timed:
            if job.is_late(now):
                self._end(job, FinishReason.DEADLINE)
        self._timed = [job for job in self._timed if not job.is_over]

    def _recover(self, error: StepFailed) -> None:
        """The cache is gone: who was in a slot computes its tokens again, but only once, for it may
        be one of them that the device cannot bear. Who waits has lost nothing.
        """
        self._num_failures += 1
        self._in_flight = None
        self._step_clock.forget_launched()
        if self._num_failures >= MAX_FAILURES:
            raise error
        _log.error("a step failed, the cache is rebuilt: %s", error, exc_info=error.__cause__)
        for family in {sequence.family for sequence in self._scheduler.reset()}:
            job = self._jobs[family]
            if not job.may_retry():
                self._end(job, FinishReason.ERROR, str(error))
        self.runner.reset()

    def _end(
        self, job: Job, reason: FinishReason, error: str | UnsatisfiableGuide | None = None
    ) -> None:
        """Ends what is still open of a request."""
        now = self._clock()
        for sequence in job.open_sequences:
            self._post(job, job.end(sequence, reason, now, error))

    def _fail(self, job: Job, error: Exception) -> None:
        """Ends a request that its own tokens have brought to this."""
        if isinstance(error, UnsatisfiableGuide):
            self._end(job, FinishReason.ERROR, error)
            return
        _log.error("request %r failed", job.request.request_id, exc_info=error)
        self._end(job, FinishReason.ERROR, repr(error))

    def _end_all(self) -> None:
        """The engine is closed, and nothing of it will be read any more."""
        self._in_flight = None
        self._receive(self._clock())
        for job in tuple(self._jobs.values()):
            self._end(job, FinishReason.ABORT)
        self._drop_errands()
        self._deliver()

    def _die(self, error: BaseException) -> None:
        """Our own state cannot be trusted any more: tells every request and takes no new ones."""
        self._inbox.close()
        for job in self._inbox.jobs():
            for sequence in job.open_sequences:
                event = job.end(sequence, FinishReason.ERROR, self._clock(), repr(error))
                self._outbox.setdefault(job.on_events, []).append(event)
            self._inbox.remove(job)
        self._jobs.clear()
        self._timed.clear()
        self._errands.extend(self._inbox.take().errands)
        self._drop_errands()
        self._deliver()

    def _drop_errands(self) -> None:
        self._errands.fail_all(EngineClosed("the engine was closed before this could run"))

    def _post(self, job: Job, event: TokenEvent) -> None:
        """Puts an event into the outbox; an output's last one ends its sequence."""
        self._outbox.setdefault(job.on_events, []).append(event)
        if event.finish_reason is not None:
            self._scheduler.finish(job.family.sequences[event.index])
        if job.is_over:
            del self._jobs[job.family]
            self._inbox.remove(job)

    def _deliver(self) -> None:
        outbox, self._outbox = self._outbox, {}
        for on_events, events in outbox.items():
            try:
                on_events(events)
            except Exception:
                _log.exception("on_events failed: its requests are aborted")
                for request_id in {event.request_id for event in events}:
                    self._inbox.abort(request_id)


def _on_device(call: Callable[[Given], Result], given: Given) -> Result:
    """What a runner answers. Whatever it raises has cost it its cache, which the step was given;
    but a broken promise of our own, or a host without memory, no new cache will mend.
    """
    try:
        return call(given)
    except (StepFailed, AssertionError, MemoryError):
        raise
    except Exception as error:
        raise StepFailed(f"a step failed with {type(error).__name__}: {error}") from error
