"""Between the engine's thread and an event loop: requests go in, events come out."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace

from jaxinfer.engine.engine import Engine
from jaxinfer.engine.request import Request
from jaxinfer.errors import DuplicateRequest
from jaxinfer.outputs import FinishReason, TokenEvent
from serve.errors import SlowReader
from serve.observer import Watch

_log = logging.getLogger(__name__)

#: Seconds after a request's deadline that the engine has to say so itself, at most half of those
#: before it. A step may take longer.
_DEADLINE_GRACE = 0.05

#: The patience of readers that show nothing before the end: see ``EventStream.batches``.
PATIENT = 256


@dataclass(frozen=True, kw_only=True)
class MissedEvent(TokenEvent):
    """The end of an output for a reader that was too slow: what waited for it is gone."""

    @property
    def failure(self) -> SlowReader:
        """What the reader is told."""
        return SlowReader(self.error)


class Door:
    """Hands requests of one event loop to an engine that runs in a thread of its own.

    All methods are for the loop's thread. The events of a step cross to it in one call, however
    many requests they belong to, so the step loop never waits for a reader.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_pending_tokens: int,
        num_remembered: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ):
        """
        Args:
            max_pending_tokens: how many tokens of one request, and log-probabilities beside them,
                may wait for its reader.
            num_remembered: ids of ended requests that ``abort`` still knows.
            clock: what watches are told the time by.
        """
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._max_pending_tokens = max_pending_tokens
        self._streams: dict[str, EventStream] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._num_remembered = num_remembered
        self._clock = clock

    def __len__(self) -> int:
        """Requests that have not ended."""
        return len(self._streams)

    def submit(self, request: Request, watches: Sequence[Watch] = ()) -> "EventStream":
        """Hands a request in; whoever got its stream closes it. ``watches`` see all its events.

        Raises:
            InvalidPrompt, InvalidParameter, CapacityError, DuplicateRequest, EngineClosed: as
                ``Engine.submit``.
        """
        if request.request_id in self._streams:
            # The engine may have forgotten it, while its last events are on their way here.
            raise DuplicateRequest(f"request_id = {request.request_id!r} is in use: take another")
        self._engine.submit(request, self._on_events)
        # The engine may have brought events by now, but none was delivered: this is their thread.
        stream = EventStream(self, request, self._max_pending_tokens, watches)
        self._streams[request.request_id] = stream
        if request.deadline is not None:
            left = request.deadline - time.monotonic()
            stream.end_at(request.deadline + min(_DEADLINE_GRACE, max(left, 0.0) / 2))
        return stream

    def abort(self, request_id: str) -> bool:
        """Ends a request; True also for one that has lately ended, False for an unknown id."""
        is_known = request_id in self._streams or request_id in self._ended
        return self._engine.abort(request_id) or is_known

    def abort_all(self) -> None:
        """Ends every request."""
        for request_id in self._streams:
            self._engine.abort(request_id)

    def end_all(self, reason: FinishReason, error: str | None = None) -> None:
        """Ends every request for its reader, when nothing more will come from the engine."""
        now = self._clock()
        for stream in self._streams.values():
            for event in stream.end(reason, error):
                stream.show(event, now)
        self._streams.clear()

    def _on_events(self, events: list[TokenEvent]) -> None:
        """In the engine's thread."""
        self._loop.call_soon_threadsafe(self._deliver, events)

    def _deliver(self, events: list[TokenEvent]) -> None:
        now = self._clock()
        for event in events:
            stream = self._streams.get(event.request_id)
            if stream is None:  # it was ended without the engine
                continue
            stream.show(event, now)
            stream.put(event)
            if stream.num_open == 0:
                del self._streams[event.request_id]
                self._remember(event.request_id)

    def _remember(self, request_id: str) -> None:
        self._ended[request_id] = None
        while len(self._ended) > self._num_remembered:
            self._ended.popitem(last=False)


class EventStream:
    """The events of one request, for one reader.

    Attributes:
        request: what was asked for.
        num_open: outputs whose last event the engine has not brought.
    """

    def __init__(
        self, door: Door, request: Request, max_pending_tokens: int, watches: Sequence[Watch] = ()
    ):
        self.request = request
        self.num_open = request.params.n
        self._door = door
        self._room = max_pending_tokens
        self._max_pending_tokens = max_pending_tokens
        self._pending: dict[int, list[TokenEvent]] = {}
        self._has_news = asyncio.Event()
        self._patience = -1  # even an event without tokens is news
        self._ended: set[int] = set()
        self._num_cached_tokens = 0
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._watches = watches

    def show(self, event: TokenEvent, now: float) -> None:
        """Shows the next event to those who look on; one that fails looks on no more."""
        try:
            for watch in self._watches:
                watch.note(event, now)
        except Exception:
            _log.exception("request %r is watched no more", self.request.request_id)
            self._watches = ()

    def put(self, event: TokenEvent) -> None:
        """Takes the engine's next event in."""
        if event.finish_reason is not None:
            self.num_open -= 1
            if self.num_open == 0:
                self._stop_timer()
        if event.index not in self._ended:
            self._take(event)

    def end(self, reason: FinishReason, error: str | None = None) -> list[TokenEvent]:
        """Ends for the reader what is still open: what the engine yet brings, it does not get."""
        events = [
            TokenEvent(
                request_id=self.request.request_id,
                index=index,
                finish_reason=reason,
                num_cached_tokens=self._num_cached_tokens,
                error=error,
            )
            for index in range(self.request.params.n)
            if index not in self._ended
        ]
        for event in events:
            self._take(event)
        return events

    def end_at(self, deadline: float) -> None:
        """Ends with DEADLINE at that time of the engine's clock, if the engine has not by then."""
        seconds = deadline - time.monotonic()
        self._timer = asyncio.get_running_loop().call_later(
            max(seconds, 0.0), self.end, FinishReason.DEADLINE
        )

    def _take(self, event: TokenEvent) -> None:
        if event.finish_reason is not None:
            self._ended.add(event.index)
        if self._is_closed:
            return
        self._num_cached_tokens = event.num_cached_tokens
        self._pending.setdefault(event.index, []).append(event)
        self._room -= _weight(event)
        if self._room < 0:
            self._miss()
        if event.finish_reason is not None or self._num_waiting > self._patience:
            self._has_news.set()

    def _miss(self) -> None:
        """What waits is dropped, and each output ends of which the reader has not seen the end."""
        unseen = [
            index
            for index in range(self.request.params.n)
            if index in self._pending or index not in self._ended
        ]
        self._pending = {index: [self._missed(index)] for index in unseen}
        self._ended.update(unseen)
        self._has_news.set()
        self._door.abort(self.request.request_id)

    def _missed(self, index: int) -> TokenEvent:
        return MissedEvent(
            request_id=self.request.request_id,
            index=index,
            finish_reason=FinishReason.ERROR,
            num_cached_tokens=self._num_cached_tokens,
            error=f"more than {self._max_pending_tokens} tokens of request "
            f"{self.request.request_id!r} waited for their reader: read faster",
        )

    @property
    def _num_waiting(self) -> int:
        """Tokens, and log-probabilities beside them, that the reader has not taken."""
        return self._max_pending_tokens - self._room

    def __aiter__(self) -> AsyncIterator[list[TokenEvent]]:
        return self.batches()

    async def batches(self, patience: int | None = None) -> AsyncIterator[list[TokenEvent]]:
        """What has come since the last time, at most one event an output.

        Args:
            patience: how many tokens may wait, while no output ends, before the reader is woken;
                never so many that it might be too slow. None: it is for every event.

        To a reader that was too slow each output that it has not seen the end of ends with ERROR,
        for which ``failure`` is ``SlowReader``, and the request was aborted.
        """
        self._patience = -1 if patience is None else min(patience, self._max_pending_tokens // 2)
        while self._pending or len(self._ended) < self.request.params.n:
            await self._has_news.wait()
            self._has_news.clear()
            pending, self._pending = self._pending, {}
            self._room = self._max_pending_tokens
            yield [_joined(events) for events in pending.values()]

    def close(self) -> None:
        """The reader has gone: ends what has not ended."""
        if self.num_open and not self._is_closed:
            self._door.abort(self.request.request_id)
        self._is_closed = True
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _weight(event: TokenEvent) -> int:
    """In tokens: a log-probability takes as much room as one."""
    return len(event.token_ids) + sum(map(len, event.logprobs or ()))


def _joined(events: list[TokenEvent]) -> TokenEvent:
    """Events of one output as one."""
    if len(events) == 1:
        return events[0]
    last = events[-1]
    has_logprobs = any(event.logprobs is not None for event in events)
    return replace(
        last,
        token_ids=tuple(token for event in events for token in event.token_ids),
        text="".join(event.text for event in events),
        logprobs=(
            tuple(entry for event in events for entry in event.logprobs or ())
            if has_logprobs
            else None
        ),
        prompt_logprobs=next(
            (event.prompt_logprobs for event in events if event.prompt_logprobs is not None), None
        ),
    )
