"""A request while it lives in the engine: what its n outputs have said, and when."""

import logging
from collections.abc import Sequence as Items

from jaxinfer.engine.request import OnEvents
from jaxinfer.engine.scheduler import Progress
from jaxinfer.engine.sequence import Family, Sequence
from jaxinfer.engine.step import Finish, StepResult
from jaxinfer.engine.stream import Delta, LogprobTable, OutputStream
from jaxinfer.errors import UnsatisfiableGuide
from jaxinfer.outputs import FinishReason, PositionLogprobs, RequestMetrics, TokenEvent

_log = logging.getLogger(__name__)


class Job:
    """Turns the progress of a request's sequences into its events, the last one of each once."""

    def __init__(
        self,
        family: Family,
        streams: Items[OutputStream],
        logprobs: LogprobTable,
        on_events: OnEvents,
        arrival_time: float,
    ):
        self.family = family
        self.request = family.request
        self.on_events = on_events
        self._arrival_time = arrival_time
        self._first_scheduled_time: float | None = None
        self._first_token_time: float | None = None
        self._last_token_time: float | None = None
        self._streams = streams
        self._logprobs = logprobs
        self._prompt_logprobs: list[PositionLogprobs | None] = [None]
        self._open = set(range(len(streams)))

    @property
    def open_sequences(self) -> list[Sequence]:
        """Those whose last event is still to come."""
        return [s for s in self.family.sequences if s.index in self._open]

    @property
    def is_scheduled(self) -> bool:
        return self._first_scheduled_time is not None

    @property
    def is_over(self) -> bool:
        return not self._open

    def is_late(self, now: float) -> bool:
        return self.request.deadline is not None and self.request.deadline <= now

    def scheduled(self, now: float) -> None:
        """A sequence was admitted."""
        if self._first_scheduled_time is None:
            self._first_scheduled_time = now

    def advance(self, progress: Progress, result: StepResult, now: float) -> TokenEvent | None:
        """The event for what a step brought to one sequence; None for a prompt under way."""
        sequence, row = progress.sequence, progress.row
        if row.targets is not None and len(row.targets):
            self._take_prompt_logprobs(progress, result)
        if not progress.token_ids:
            return None
        if self._first_token_time is None:
            self._first_token_time = now
        self._last_token_time = now
        is_complete = (
            sequence.constraint is not None
            and progress.finish is not Finish.STOP
            and sequence.constraint.completes(sequence.generated)
        )
        delta = self._streams[sequence.index].push(
            progress.token_ids, progress.finish, is_complete=is_complete
        )
        kept = progress.token_ids[: delta.num_kept]
        wanted = self.request.params.logprobs
        return self._event(
            sequence.index,
            delta,
            now,
            token_ids=tuple(kept),
            logprobs=(
                None
                if wanted is None
                else self._logprobs.of_row(result, row.slot, kept, num_alternatives=wanted)
            ),
        )

    def end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        now: float,
        error: str | UnsatisfiableGuide | None = None,
    ) -> TokenEvent:
        """The last event of an output that ends without a token: aborted, late, or failed.

        A stream that fails in this, too, only loses the text that it held back.
        """
        text = ""
        try:
            text = self._streams[sequence.index].flush()
        except Exception:
            _log.exception("request %r: its held back text is lost", self.request.request_id)
        delta = Delta(num_kept=0, text=text, finish_reason=reason)
        return self._event(sequence.index, delta, now, error=error)

    def _event(
        self,
        index: int,
        delta: Delta,
        now: float,
        *,
        token_ids: tuple[int, ...] = (),
        logprobs: tuple[PositionLogprobs, ...] | None = None,
        error: str | UnsatisfiableGuide | None = None,
    ) -> TokenEvent:
        is_last = delta.finish_reason is not None
        event = TokenEvent(
            request_id=self.request.request_id,
            index=index,
            token_ids=token_ids,
            text=delta.text,
            logprobs=logprobs,
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
            num_cached_tokens=self.family.num_cached_tokens or 0,
            prompt_logprobs=self._shown_prompt_logprobs(index),
            metrics=self._metrics(now) if is_last else None,
            error=None if error is None else str(error),
            is_unsatisfiable=isinstance(error, UnsatisfiableGuide),
        )
        if is_last:
            self._open.remove(index)
        return event

    def _metrics(self, now: float) -> RequestMetrics:
        return RequestMetrics(
            arrival_time=self._arrival_time,
            first_scheduled_time=self._first_scheduled_time,
            first_token_time=self._first_token_time,
            last_token_time=self._last_token_time,
            finished_time=now,
        )

    def _take_prompt_logprobs(self, progress: Progress, result: StepResult) -> None:
        """Adds a chunk; one that begins the prompt again, after preemption, replaces the others."""
        row, wanted = progress.row, self.request.params.prompt_logprobs
        assert row.targets is not None
        assert wanted is not None
        chunk = self._logprobs.of_prompt(row.targets, result.prompt_logprobs[row.slot], wanted)
        self._prompt_logprobs[row.start + 1 :] = chunk

    def _shown_prompt_logprobs(self, index: int) -> tuple[PositionLogprobs | None, ...] | None:
        if index != 0 or len(self._prompt_logprobs) < self.family.prompt_len:
            return None
        shown, self._prompt_logprobs = tuple(self._prompt_logprobs), []
        return shown if self.request.params.prompt_logprobs is not None else None
