"""What comes back from the engine: token events as they happen, and vLLM's outputs at the end."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from jaxinfer.errors import JaxInferError, StepFailed, UnsatisfiableGuide


class FinishReason(StrEnum):
    """Why an output ended."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    DEADLINE = "deadline"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True)
class Logprob:
    """One token's log-probability; ``rank`` 1 is the most likely token."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


#: The log-probabilities at one position, by token id.
PositionLogprobs = Mapping[int, Logprob]


@dataclass(frozen=True, kw_only=True)
class RequestMetrics:
    """When things happened to a request, in seconds of the engine's clock; None: not yet."""

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    last_token_time: float | None = None
    finished_time: float | None = None


@dataclass(frozen=True, kw_only=True)
class TokenEvent:
    """What one step added to one output of a request.

    Attributes:
        index: which of the request's n outputs.
        token_ids: the new tokens; those behind a stop string are left out.
        text: the new text; what may yet become a stop string or a character is held back.
        logprobs: for each new token, when the request asked for them.
        finish_reason: set in an output's last event, and only there.
        stop_reason: the stop string or stop token id that ended the output; None for the model's
            own end of sequence.
        num_cached_tokens: prompt tokens that the prefix cache held.
        prompt_logprobs: in the first event of output 0, when asked for; one entry a prompt token,
            None for the first.
        metrics: in the last event.
        error: what went wrong, when ``finish_reason`` is ERROR.
        is_unsatisfiable: it was that nothing the request allows matches its structured outputs.
    """

    request_id: str
    index: int
    token_ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[PositionLogprobs, ...] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    num_cached_tokens: int = 0
    prompt_logprobs: tuple[PositionLogprobs | None, ...] | None = None
    metrics: RequestMetrics | None = None
    error: str | None = None
    is_unsatisfiable: bool = False

    @property
    def failure(self) -> JaxInferError | None:
        """``error`` as an exception."""
        if self.finish_reason is not FinishReason.ERROR:
            return None
        kind = UnsatisfiableGuide if self.is_unsatisfiable else StepFailed
        return kind(self.error or "the device failed")


@dataclass(frozen=True, kw_only=True)
class CompletionOutput:
    """One of a request's n outputs. ``cumulative_logprob`` is None without ``logprobs``."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    cumulative_logprob: float | None = None
    logprobs: tuple[PositionLogprobs, ...] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None


@dataclass(frozen=True, kw_only=True)
class RequestOutput:
    """A request and its outputs, ordered by index. ``prompt_logprobs[0]`` is None."""

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    prompt_logprobs: tuple[PositionLogprobs | None, ...] | None = None
    num_cached_tokens: int = 0
    metrics: RequestMetrics | None = None

    @property
    def finished(self) -> bool:
        return all(output.finished for output in self.outputs)


def gather_events(
    events: Iterable[TokenEvent],
    *,
    request_id: str,
    prompt: str | None,
    prompt_token_ids: Sequence[int],
    num_outputs: int = 1,
) -> RequestOutput:
    """The outputs that a request's events add up to, in the order in which they came."""
    events = tuple(events)
    outputs = [
        _gather_output(index, [event for event in events if event.index == index])
        for index in range(num_outputs)
    ]
    prompt_logprobs = (event.prompt_logprobs for event in events)
    return RequestOutput(
        request_id=request_id,
        prompt=prompt,
        prompt_token_ids=tuple(prompt_token_ids),
        outputs=tuple(outputs),
        prompt_logprobs=next((entry for entry in prompt_logprobs if entry is not None), None),
        num_cached_tokens=max((event.num_cached_tokens for event in events), default=0),
        metrics=events[-1].metrics if events else None,
    )


def _gather_output(index: int, events: Sequence[TokenEvent]) -> CompletionOutput:
    token_ids = tuple(token for event in events for token in event.token_ids)
    logprobs, cumulative = None, None
    if any(event.logprobs is not None for event in events):
        logprobs = tuple(entry for event in events for entry in event.logprobs or ())
        chosen = zip(token_ids, logprobs, strict=True)
        cumulative = sum(entry[token].logprob for token, entry in chosen)
    last = events[-1] if events else None
    return CompletionOutput(
        index=index,
        text="".join(event.text for event in events),
        token_ids=token_ids,
        cumulative_logprob=cumulative,
        logprobs=logprobs,
        finish_reason=last.finish_reason if last else None,
        stop_reason=last.stop_reason if last else None,
    )
