"""The engine: requests in, events out, one step after the other."""

import itertools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from jaxinfer.engine.bad_words import read_bad_words
from jaxinfer.engine.constraint_maker import ConstraintMaker
from jaxinfer.engine.errand import Errand, WaitFor
from jaxinfer.engine.inbox import Inbox
from jaxinfer.engine.job import Job
from jaxinfer.engine.request import (
    OnEvents,
    Request,
    clipped_max_tokens,
    verify_prompt,
    with_verified_schedule,
)
from jaxinfer.engine.sequence import Family
from jaxinfer.engine.stats import EngineStats
from jaxinfer.engine.step import Runner
from jaxinfer.engine.step_loop import StepLoop
from jaxinfer.engine.stream import LogprobTable, OutputStream
from jaxinfer.errors import DeadlinePassed, EngineClosed
from jaxinfer.guides import CompiledGuide
from jaxinfer.structured_outputs import Guide
from jaxinfer.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: Seconds between two looks at the books of an engine that has nothing to do.
_AUDIT_INTERVAL = 10.0

#: Seconds that the engine's own thread steps aside after a step, where that is next to nothing
#: beside what the device takes for the shortest.
_STEP_ASIDE = 1e-4
_NEXT_TO_NOTHING = 0.02


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
        self._tokenizer = tokenizer
        self._logprobs = LogprobTable(tokenizer)
        self._constraints = ConstraintMaker(
            tokenizer,
            eos_token_ids=runner.eos_token_ids,
            limits=runner.limits,
        )
        self._clock = clock
        self._inbox = Inbox(runner.limits)
        self._loop = StepLoop(
            runner, self._inbox, clock, lookahead=lookahead, debug_checks=debug_checks
        )
        self._arrivals = itertools.count()
        self._turn = threading.RLock()  # held by whoever takes a step
        self._in_turn = False
        self._thread: threading.Thread | None = None
        self._audited_at = clock()
        self.ended: Future[None] = Future()
        self.ended.set_running_or_notify_cancel()  # nobody who waits for it can cancel it

    @property
    def runner(self) -> Runner:
        """The device; another may take its place while nothing is in flight."""
        return self._loop.runner

    @runner.setter
    def runner(self, runner: Runner) -> None:
        self._loop.runner = runner

    def submit(self, request: Request, on_events: OnEvents) -> None:
        """Takes a request in; each of its n outputs will end with exactly one last event.

        ``on_events`` gets lists of events in the order in which they happened. Requests that were
        submitted with the same callable get the events of a step in one call.

        Raises:
            InvalidPrompt, InvalidParameter, PromptTooLong: the request cannot be served as it is.
            UnsatisfiableGuide: no text matches its structured outputs, or none that its other
                parameters allow.
            Unsupported: structured outputs, and llguidance is not installed.
            CapacityError: the queue is full.
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
        self.require_time(request.deadline, request.priority)
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

    def require_time(self, deadline: float | None, priority: int = 0) -> None:
        """Refuses what cannot have a token in time because of the requests that are here.

        Each that is queued before it has a slot for a step at least, and a step takes no less than
        the shortest so far; who ends early is what nobody knows before. An engine without requests
        takes what comes: only so does it learn that steps have become shorter.

        Args:
            deadline: seconds on the engine's clock; None is never.
            priority: as ``Request.priority``.

        Raises:
            DeadlinePassed: it leaves less time than those steps and its own.
        """
        shortest = self._loop.step_clock.shortest_step
        if deadline is None or shortest is None or not self._inbox:
            return
        left = deadline - self._clock()
        num_ahead = self._inbox.num_ahead(deadline, priority)
        num_steps = 1 + num_ahead // self.runner.limits.max_num_seqs
        if left < num_steps * shortest:
            raise DeadlinePassed(
                f"{1000 * max(left, 0.0):.1f} ms are left until the deadline, and no step has yet "
                f"taken less than {1000 * shortest:.1f} ms; with {num_ahead} requests queued "
                f"before it there are {num_steps} to wait for: give the request more time"
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
                self._loop.end_all()

    @property
    def is_closed(self) -> bool:
        """Whether it takes nothing more, because of ``close`` or of a failure of its own."""
        return self._inbox.is_closed

    @property
    def stats(self) -> EngineStats:
        return self._loop.scheduler.stats

    @property
    def num_running(self) -> int:
        """Sequences in slots."""
        return len(self._loop.scheduler.running)

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue."""
        return len(self._loop.scheduler.waiting)

    @property
    def num_unfinished(self) -> int:
        """Requests."""
        return len(self._inbox)

    @property
    def page_usage(self) -> float:
        """The fraction of pages in use, of the layer group that has the fewest left."""
        pools = self._loop.scheduler.tables.pools
        return max(pool.num_used / (pool.num_pages - 1) for pool in pools)

    def step(self) -> bool:
        """Takes one step and delivers its events. True while there is more to do.

        Once the engine is closed, there are no more steps.
        """
        with self._turn:
            if not self._inbox.is_closed:
                self._in_turn = True
                try:
                    self._loop.step()
                except BaseException as error:
                    self._die(error)
                    raise
                finally:
                    self._in_turn = False
            if self._inbox.is_closed:
                self._loop.end_all()
            return bool(self._inbox) or self._loop.has_work

    def _run(self) -> None:
        try:
            while self._inbox.wait_for_work():
                if self.step():
                    self._step_aside()
                self._audit()
        except BaseException as error:  # the requests were told
            _log.exception("the engine failed and is closed")
            self.ended.set_exception(error)
        else:
            self.ended.set_result(None)

    def _step_aside(self) -> None:
        """Leaves Python's lock to those who read the events.

        This thread would keep it until the next step is launched, which has time while the device
        computes, and a first token would come some 2 ms later.
        """
        shortest = self._loop.step_clock.shortest_step
        if shortest is not None and _NEXT_TO_NOTHING * shortest >= _STEP_ASIDE:
            time.sleep(_STEP_ASIDE)

    def _audit(self) -> None:
        """Looks at the books, now and then, while nobody waits; wrong ones end the engine."""
        now = self._clock()
        with self._turn:
            if now - self._audited_at < _AUDIT_INTERVAL or self._loop.roster:
                return
            self._audited_at = now
            try:
                self._loop.scheduler.check()
            except BaseException as error:
                self._die(error)
                raise

    def _die(self, error: BaseException) -> None:
        """Tells every request and takes no new ones."""
        self._inbox.close()
        self._loop.abandon(error)
