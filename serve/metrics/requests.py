"""What requests have taken and brought, measured where their events are delivered."""

from collections import Counter
from typing import TYPE_CHECKING

from jaxinfer.engine.request import Request
from jaxinfer.outputs import FinishReason, RequestMetrics, TokenEvent
from serve.metrics.histogram import REQUEST_BOUNDS, TOKEN_BOUNDS, Histogram

if TYPE_CHECKING:
    from serve.frontend import Ask

#: A request counts for the worst that became of its outputs: the last of these.
_WORST = (
    FinishReason.STOP,
    FinishReason.LENGTH,
    FinishReason.ABORT,
    FinishReason.DEADLINE,
    FinishReason.ERROR,
)


class RequestTotals:
    """Sums over all requests; an ``Observer``.

    Attributes:
        time_to_first_token: from arrival to the first token of any output.
        inter_token_latency: between two deliveries of one output, however many tokens each had.
        time_per_output_token: the mean of an output of two tokens or more.
        e2e_latency: from arrival to the end of the last output.
        queue_time, prefill_time, decode_time: as the engine saw it, of requests that came so far.
        num_finished: requests by the worst reason that one of their outputs ended for.
        num_prompt_tokens: of requests that brought a token.
    """

    def __init__(self) -> None:
        self.time_to_first_token = Histogram(REQUEST_BOUNDS)
        self.inter_token_latency = Histogram(TOKEN_BOUNDS)
        self.time_per_output_token = Histogram(TOKEN_BOUNDS)
        self.e2e_latency = Histogram(REQUEST_BOUNDS)
        self.queue_time = Histogram(REQUEST_BOUNDS)
        self.prefill_time = Histogram(REQUEST_BOUNDS)
        self.decode_time = Histogram(REQUEST_BOUNDS)
        self.num_finished: Counter[FinishReason] = Counter(dict.fromkeys(FinishReason, 0))
        self.num_prompt_tokens = 0

    def begin(self, ask: "Ask", request: Request, arrival: float) -> "RequestTimes":
        """See ``Observer``."""
        return RequestTimes(self, request, arrival)

    def count_request(self, reason: FinishReason, times: RequestMetrics | None) -> None:
        """One more has ended."""
        self.num_finished[reason] += 1
        if times is None or times.first_scheduled_time is None:
            return
        self.queue_time.observe(times.first_scheduled_time - times.arrival_time)
        if times.first_token_time is None or times.last_token_time is None:
            return
        self.prefill_time.observe(times.first_token_time - times.first_scheduled_time)
        self.decode_time.observe(times.last_token_time - times.first_token_time)


class RequestTimes:
    """When what came of one request; a ``Watch``."""

    def __init__(self, totals: RequestTotals, request: Request, arrival: float):
        # Nothing is allocated for n outputs: the engine has not looked at n yet.
        self._totals, self._arrival = totals, arrival
        self._prompt_len = len(request.prompt_token_ids)
        self._first: dict[int, float] = {}  # by output, as the next two
        self._latest: dict[int, float] = {}
        self._num_tokens: dict[int, int] = {}
        self._num_open = request.params.n
        self._worst = FinishReason.STOP

    def note(self, event: TokenEvent, now: float) -> None:
        """See ``Watch``."""
        if event.token_ids:
            self._note_tokens(event.index, len(event.token_ids), now)
        if event.finish_reason is not None:
            self._note_end(event, event.finish_reason, now)

    def _note_tokens(self, index: int, count: int, now: float) -> None:
        if not self._first:
            self._totals.num_prompt_tokens += self._prompt_len
            self._totals.time_to_first_token.observe(now - self._arrival)
        if index not in self._first:
            self._first[index], self._num_tokens[index] = now, 0
        else:
            self._totals.inter_token_latency.observe(now - self._latest[index])
        self._latest[index] = now
        self._num_tokens[index] += count

    def _note_end(self, event: TokenEvent, reason: FinishReason, now: float) -> None:
        index, num_tokens = event.index, self._num_tokens.get(event.index, 0)
        if num_tokens > 1:
            mean = (self._latest[index] - self._first[index]) / (num_tokens - 1)
            self._totals.time_per_output_token.observe(mean)
        self._worst = max(self._worst, reason, key=_WORST.index)
        self._num_open -= 1
        if self._num_open == 0:
            self._totals.e2e_latency.observe(now - self._arrival)
            self._totals.count_request(self._worst, event.metrics)
