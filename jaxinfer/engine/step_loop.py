"""One step after the other: planned, launched, sampled, read, told."""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

from jaxinfer.engine.constraint import Constraint
from jaxinfer.engine.errand_queue import ErrandQueue
from jaxinfer.engine.inbox import Inbox
from jaxinfer.engine.request import Request
from jaxinfer.engine.roster import Roster
from jaxinfer.engine.scheduler import Scheduler
from jaxinfer.engine.sequence import Family, Sequence
from jaxinfer.engine.step import Row, Runner, StepPlan
from jaxinfer.engine.step_clock import StepClock
from jaxinfer.errors import EngineClosed, StepFailed
from jaxinfer.outputs import FinishReason
from jaxinfer.sampling_params import SamplingParams

_log = logging.getLogger(__name__)

Given = TypeVar("Given")
Result = TypeVar("Result")

#: After so many failed steps, with none between them that was finished, the device has to prove
#: that it can do anything; after ``MAX_FAILURES`` an engine of which that is all ends.
_PROOF_AFTER = 8
MAX_FAILURES = 64


class StepLoop:
    """What an engine does in a step. One thread at a time calls it.

    Attributes:
        runner: the device; another may take its place while nothing is in flight.
        debug_checks: assert the scheduler's invariants in every step.
    """

    def __init__(
        self,
        runner: Runner,
        inbox: Inbox,
        clock: Callable[[], float],
        *,
        lookahead: bool,
        debug_checks: bool,
    ):
        """Args: as ``Engine``; ``inbox``: where others ask for what is to be done."""
        self.runner = runner
        self.debug_checks = debug_checks
        self.scheduler = Scheduler(runner.groups, runner.limits)
        self.step_clock = StepClock(clock, self.scheduler.stats)
        self.roster = Roster(inbox, self.scheduler, clock)
        self._inbox = inbox
        self._clock = clock
        self._lookahead = lookahead
        self._errands = ErrandQueue(inbox)
        self._in_flight: tuple[StepPlan, Any] | None = None
        self._unread: deque[StepPlan] = deque()  # launched, or about to be
        self._num_failures = 0  # since a step was finished

    @property
    def has_work(self) -> bool:
        """Something is in flight, or waits to run between steps."""
        return bool(self._in_flight or self._errands)

    def step(self) -> None:
        """Takes one step and delivers its events.

        Raises:
            BaseException: whatever makes going on impossible; ``abandon`` it then.
        """
        with self.step_clock.step():
            self._take_step()
            self.roster.deliver()

    def end_all(self) -> None:
        """Ends everything with ABORT; what is in flight will not be read."""
        self._in_flight = None
        self._receive(self._clock())
        self.roster.end_all(FinishReason.ABORT)
        self._drop_errands()
        self.roster.deliver()

    def abandon(self, error: BaseException) -> None:
        """Our own state cannot be trusted any more: everybody is told why."""
        self.roster.abandon_all(error)
        self._errands.extend(self._inbox.take().errands)
        self._drop_errands()
        self.roster.deliver()

    def _take_step(self) -> None:
        now = self._clock()
        self._receive(now)
        try:
            while self._errands.is_due(now, self.roster.jobs.values()):
                self._land_all()
                self._errands.run_next()
                self._receive(now)  # what it has asked for
            self.scheduler.admits_new = not self._errands.holds_new_back
            if self._lookahead:
                self._advance_ahead(now)
            else:
                self._advance(now)
        except StepFailed as error:
            self._recover(error)
        if self.debug_checks:
            self.scheduler.check()

    def _receive(self, now: float) -> None:
        mail = self._inbox.take()
        if mail.forget_prefixes:
            self.scheduler.tables.forget_prefixes()
        self._errands.extend(mail.errands)
        self.roster.take_up(mail.submitted)
        for job in mail.aborted:
            self.roster.end(job, FinishReason.ABORT)
        self.roster.end_late_ones(now)

    def _advance(self, now: float) -> None:
        """The plain loop: one step, launched, sampled and read."""
        launched = self._launch(now)
        if launched is not None:
            self._sample(*launched)
            self._land(*launched)
        assert launched or not self.roster, "nothing to do, yet not done"

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
        assert launched or previous or not self.roster, "nothing to do, yet not done"

    def _launch(self, now: float) -> tuple[StepPlan, Any] | None:
        plan = self.scheduler.plan(self._max_steps())
        if plan is None:
            return None
        for admission in plan.admissions:
            sequence = self.scheduler.slots.owner(admission.slot, admission.generation)
            assert sequence is not None
            self.roster.jobs[sequence.family].scheduled(now)
        self.step_clock.launched()
        self._unread.append(plan)
        return plan, _on_device(self.runner.launch, plan)

    def _max_steps(self) -> int | None:
        """How many decode steps the nearest deadline leaves time for; None: there is none."""
        nearest = self.roster.nearest_deadline
        if nearest is None:
            return None
        return self.step_clock.steps_until(nearest, most=self.runner.limits.decode_steps[-1])

    def _sample(self, plan: StepPlan, pending: Any) -> None:
        """Starts the sampling of a launched step; all tokens before it were read."""
        allowed = {}
        for row, constraint, sequence in self._constrained(plan):
            job = self.roster.jobs[sequence.family]
            try:
                allowed_W = constraint.allowed(sequence.generated)
            except Exception as error:
                self.roster.fail(job, error)
                continue
            if allowed_W is None:
                continue
            if allowed_W.any():
                allowed[row.slot] = allowed_W
            else:
                end = job.end(sequence, FinishReason.STOP, self._clock())
                self.roster.post(job, end)
        _on_device(partial(self.runner.sample, pending), allowed)

    def _constrained(self, plan: StepPlan) -> Iterator[tuple[Row, Constraint, Sequence]]:
        """The rows whose next token depends on those before, but for those that have ended."""
        for row in plan.rows:
            sequence = self.scheduler.slots.owner(row.slot, row.generation)
            if row.samples and sequence is not None and sequence.constraint is not None:
                yield row, sequence.constraint, sequence

    def _land(self, plan: StepPlan, pending: Any) -> None:
        with self.step_clock.landing(plan.num_steps):
            result = _on_device(self.runner.read, pending)
        self._unread.popleft()
        self._num_failures = 0
        now = self._clock()
        for progress in self.scheduler.commit(plan, result):
            job = self.roster.jobs.get(progress.sequence.family)
            if job is None:  # another sample of the request has just failed
                continue
            try:
                event = job.advance(progress, result, now)
            except Exception as error:
                self.roster.fail(job, error)
                continue
            if event is not None:
                self.roster.post(job, event)

    def _land_all(self) -> None:
        """Reads what is in flight; nothing is, afterwards."""
        if self._in_flight is not None:
            previous, self._in_flight = self._in_flight, None
            self._land(*previous)

    def _recover(self, error: StepFailed) -> None:
        """The cache is gone: who was in a slot computes its tokens again, and who waits has lost
        nothing. After a second failure each does so alone for a while, for it may be one of them
        that the device cannot bear. Who fails twice there ends, if the device bears anything else.
        """
        self._num_failures += 1
        self._in_flight = None
        self.step_clock.forget_launched()
        if self._num_failures >= MAX_FAILURES:
            raise error
        _log.error("a step failed, the cache is rebuilt: %s", error, exc_info=error.__cause__)
        culprit = self.scheduler.reset(self._unread)
        self._unread.clear()
        self.runner.reset()
        if culprit is not None or self._num_failures % _PROOF_AFTER == 0:
            self._prove_device()
        if culprit is not None:
            self.scheduler.acquit_all()
            self.roster.end(self.roster.jobs[culprit.family], FinishReason.ERROR, str(error))

    def _prove_device(self) -> None:
        """Has the device compute a token for nobody; in a second try, if it has to be.

        Raises:
            StepFailed: it cannot even do that.
        """
        try:
            self._compute_a_token()
        except StepFailed as error:
            _log.error("a step for nobody failed, too: %s", error, exc_info=error.__cause__)
            self.scheduler.reset(())
            self.runner.reset()
            self._compute_a_token()

    def _compute_a_token(self) -> None:
        params = SamplingParams(max_tokens=1)
        request = Request(
            request_id="", prompt_token_ids=[0], params=params, bypass_prefix_cache=True
        )
        sampling = self.runner.slot_sampling(params, index=0, max_tokens=1)
        num_groups = len(self.runner.groups)
        family = Family(
            request, arrival=-1, samplings=[sampling], max_tokens=1, num_groups=num_groups
        )
        [sequence] = family.sequences
        plan = self.scheduler.plan_alone(sequence)
        try:
            pending = _on_device(self.runner.launch, plan)
            _on_device(partial(self.runner.sample, pending), {})
            self.scheduler.commit(plan, _on_device(self.runner.read, pending))
        finally:
            self.scheduler.finish(sequence)

    def _drop_errands(self) -> None:
        self._errands.fail_all(EngineClosed("the engine was closed before this could run"))


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
