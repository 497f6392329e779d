"""What a server sends, as what callers get."""

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from jaxinfer.outputs import (
    FinishReason,
    Logprob,
    PositionLogprobs,
    RequestMetrics,
    TokenEvent,
    gather_events,
)
from serve.client.errors import Internal
from serve.client.results import Generation, Output, Score, Usage
from serve.proto import inference_pb2 as pb

T = TypeVar("T")

_REASONS = {
    pb.STOP: FinishReason.STOP,
    pb.LENGTH: FinishReason.LENGTH,
    pb.ABORT: FinishReason.ABORT,
    pb.DEADLINE: FinishReason.DEADLINE,
    pb.ERROR: FinishReason.ERROR,
}


class Reader:
    """Reads what comes for one request."""

    def __init__(self, request: pb.GenerateRequest):
        self.request = request
        self.num_outputs = request.sampling.n
        self._events: list[TokenEvent] = []
        self._usages: dict[int, Usage] = {}
        self._prompt = pb.PromptInfo()
        self._error: str | None = None
        self._has_failed = False

    def take(self, message: pb.GenerateEvent) -> TokenEvent | None:
        """The event that a message tells of, if any."""
        event = self._event(message)
        if event is not None:
            self._events.append(event)
        return event

    def take_response(self, response: pb.GenerateResponse) -> None:
        """Takes all that a request brought, where it came at once."""
        self.take(pb.GenerateEvent(prompt=response.prompt))
        for output in response.outputs:
            delta = pb.TokenDelta(
                index=output.index,
                text=output.text,
                token_ids=output.token_ids,
                logprobs=output.logprobs,
            )
            self.take(pb.GenerateEvent(delta=delta))
            self.take(pb.GenerateEvent(finished=output.finished))

    def abort_open(self) -> None:
        """The outputs that have not ended have been left."""
        open_ = set(range(self.num_outputs)) - set(self._usages)
        aborted = FinishReason.ABORT
        self._events += [self._of(index, finish_reason=aborted) for index in sorted(open_)]

    def require_success(self) -> None:
        """
        Raises:
            Internal: an output ended with an error of the server's.
        """
        if self._has_failed:
            raise Internal(self._error or "the server failed during the request")

    def result(self) -> Generation:
        """What has come so far."""
        is_ids = self.request.HasField("token_ids")
        gathered = gather_events(
            self._events,
            request_id=self.request.request_id,
            prompt=self.request.text if self.request.HasField("text") else None,
            prompt_token_ids=self.request.token_ids.ids if is_ids else (),
            num_outputs=self.num_outputs,
        )
        timings = {event.index: event.metrics for event in self._events if event.metrics}
        outputs = tuple(
            Output(
                **vars(output),
                usage=self._usages.get(output.index),
                timing=timings.get(output.index),
            )
            for output in gathered.outputs
        )
        return Generation(
            **vars(gathered) | {"outputs": outputs},
            model=self._prompt.model,
            num_prompt_tokens=self._prompt.prompt_tokens,
        )

    def _event(self, message: pb.GenerateEvent) -> TokenEvent | None:
        match message.WhichOneof("event"):
            case "delta":
                delta = message.delta
                return self._of(
                    delta.index,
                    token_ids=tuple(delta.token_ids),
                    text=delta.text,
                    logprobs=positions(delta.logprobs) if delta.logprobs else None,
                )
            case "finished":
                return self._end(message.finished)
            case "prompt":
                self._prompt = message.prompt
                if self._prompt.logprobs:
                    return self._of(0, prompt_logprobs=self._prompt_logprobs())
            case "error":
                self._error = message.error.message
        return None

    def _prompt_logprobs(self) -> tuple[PositionLogprobs | None, ...]:
        """All that have come: where they are too many for one message, those of the next follow."""
        before: tuple[PositionLogprobs | None, ...] = (None,)
        for event in self._events:
            if event.prompt_logprobs is not None:
                before = event.prompt_logprobs
                self._events.remove(event)
                break
        return (*before, *positions(self._prompt.logprobs))

    def _end(self, finished: pb.Finished) -> TokenEvent:
        stop = finished.WhichOneof("stop_match")
        reason = _REASONS.get(finished.reason, FinishReason.ERROR)
        self._has_failed |= reason is FinishReason.ERROR
        self._usages[finished.index] = usage_of(finished.usage)
        return self._of(
            finished.index,
            finish_reason=reason,
            stop_reason=None if stop is None else getattr(finished, stop),
            num_cached_tokens=finished.usage.cached_tokens,
            metrics=_timing(finished.timing) if finished.HasField("timing") else None,
            error=self._error if reason is FinishReason.ERROR else None,
        )

    def _of(self, index: int, **parts: Any) -> TokenEvent:
        return TokenEvent(request_id=self.request.request_id, index=index, **parts)


def score_of(response: pb.ScoreResponse) -> Score:
    """The score that a message tells."""
    return Score(
        token_ids=tuple(response.token_ids),
        token_logprobs=tuple(response.logprobs),
        is_greedy=response.is_greedy,
        usage=usage_of(response.usage),
    )


def usage_of(usage: pb.Usage) -> Usage:
    """The counts of tokens that a message tells."""
    return Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
    )


def facts_of(kind: type[T], message: Any) -> T:
    """A dataclass from the message whose fields have its names."""
    return kind(**{field.name: _fact(message, field.name) for field in fields(kind)})  # type: ignore[arg-type]


def positions(logprobs: Iterable[pb.PositionLogprobs]) -> tuple[PositionLogprobs, ...]:
    """Log-probabilities position by position, by token id."""
    return tuple(
        {
            entry.token_id: Logprob(
                logprob=entry.logprob, rank=entry.rank or None, decoded_token=entry.text
            )
            for entry in position.entries
        }
        for position in logprobs
    )


def _fact(message: Any, name: str) -> Any:
    field = message.DESCRIPTOR.fields_by_name[name]
    value = getattr(message, name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return dict(value)
    if not isinstance(value, str | Mapping) and hasattr(value, "__len__"):
        return tuple(value)
    if field.has_presence and not message.HasField(name):
        return None
    return value


def _timing(timing: pb.Timing) -> RequestMetrics:
    def seconds(nanoseconds: int) -> float | None:
        return nanoseconds / 1e9 if nanoseconds else None

    return RequestMetrics(
        arrival_time=timing.arrival / 1e9,
        first_scheduled_time=seconds(timing.first_scheduled),
        first_token_time=seconds(timing.first_token),
        last_token_time=seconds(timing.last_token),
    )
