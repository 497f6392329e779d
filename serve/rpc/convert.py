"""Messages of the wire into what the engine takes, and its events into messages."""

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from google.protobuf.message import Message

from jaxinfer.errors import InvalidPrompt
from jaxinfer.outputs import (
    FinishReason,
    PositionLogprobs,
    RequestMetrics,
    RequestOutput,
    TokenEvent,
)
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.structured_outputs import StructuredOutputsParams
from serve.bounds import few
from serve.frontend import Ask, Conversation
from serve.proto import inference_pb2 as pb
from serve.score import ScoreAsk

if TYPE_CHECKING:
    from jaxinfer.llm import Score

_REASONS = {
    FinishReason.STOP: pb.STOP,
    FinishReason.LENGTH: pb.LENGTH,
    FinishReason.ABORT: pb.ABORT,
    FinishReason.DEADLINE: pb.DEADLINE,
    FinishReason.ERROR: pb.ERROR,
}


def read_ask(message: pb.GenerateRequest, timeout: float | None) -> Ask:
    """A request as its message says it; ``timeout`` in seconds.

    Raises:
        InvalidPrompt: there is none.
    """
    return Ask(
        request_id=message.request_id,
        model=message.model,
        prompt=_read_prompt(message),
        params=read_params(message),
        priority=message.priority,
        timeout=timeout,
        cache_salt=message.cache.salt,
        bypass_prefix_cache=message.cache.bypass,
    )


def read_score_ask(message: pb.ScoreRequest, timeout: float | None) -> ScoreAsk:
    """The same of a request for a score.

    Raises:
        InvalidPrompt: there is no prompt.
    """
    if message.WhichOneof("prompt") is None:
        raise InvalidPrompt("the request has no prompt: set text or token_ids")
    continuation: str | Sequence[int] | None = None
    match message.WhichOneof("continuation"):
        case "continuation_text":
            continuation = message.continuation_text
        case "continuation_token_ids":
            continuation = message.continuation_token_ids.ids
    return ScoreAsk(
        prompt=message.text if message.HasField("text") else message.token_ids.ids,
        continuation=continuation,
        request_id=message.request_id,
        model=message.model,
        priority=message.priority,
        timeout=timeout,
    )


def score_response(score: "Score", output: RequestOutput) -> pb.ScoreResponse:
    """A score as a message."""
    assert output.prompt_logprobs is not None
    return pb.ScoreResponse(
        token_ids=score.token_ids,
        logprobs=score.token_logprobs,
        is_greedy=score.is_greedy,
        total_logprob=score.logprob,
        usage=pb.Usage(
            prompt_tokens=len(output.prompt_token_ids), cached_tokens=output.num_cached_tokens
        ),
    )


def _read_prompt(message: pb.GenerateRequest) -> str | Sequence[int] | Conversation:
    match message.WhichOneof("prompt"):
        case "text":
            return message.text
        case "token_ids":
            return message.token_ids.ids
        case "chat":
            return Conversation(messages=read_messages(message.chat))
    raise InvalidPrompt("the request has no prompt: set text, token_ids or chat")


def read_messages(chat: pb.ChatMessages) -> list[dict[str, str]]:
    """A conversation as templates take it.

    Raises:
        InvalidParameter: too many messages.
    """
    messages = few("chat.messages", chat.messages)
    return [{"role": each.role, "content": each.content} for each in messages]


def read_params(message: pb.GenerateRequest) -> SamplingParams:
    """Sampling parameters; what a message leaves out keeps its default.

    Raises:
        InvalidParameter: a list that is too long to be read.
    """
    sampling, stopping, output = message.sampling, message.stopping, message.output
    return SamplingParams(
        **_given(
            sampling,
            "n",
            "temperature",
            "top_p",
            "top_k",
            "min_p",
            "presence_penalty",
            "frequency_penalty",
            "repetition_penalty",
            "seed",
        ),
        **_given(output, "logprobs", "prompt_logprobs", "skip_special_tokens"),
        **_given(stopping, "min_tokens"),
        max_tokens=stopping.max_tokens if stopping.HasField("max_tokens") else None,
        logit_bias=dict(few("logit_bias", sampling.logit_bias)) or None,
        allowed_token_ids=tuple(few("allowed_token_ids", sampling.allowed_token_ids)) or None,
        bad_words=tuple(few("bad_words", sampling.bad_words)),
        structured_outputs=_read_guided(message),
        stop=tuple(few("stop", stopping.stop)),
        stop_token_ids=tuple(few("stop_token_ids", stopping.stop_token_ids)),
        ignore_eos=stopping.ignore_eos,
        include_stop_str_in_output=stopping.include_stop_in_output,
        detokenize=not output.token_ids_only,
    )


def _read_guided(message: pb.GenerateRequest) -> StructuredOutputsParams | None:
    """What the outputs must match; None: anything. Of a kind that is not known it holds nothing."""
    if not message.HasField("guided"):
        return None
    guided = message.guided
    match guided.WhichOneof("guide"):
        case "json_schema":
            return StructuredOutputsParams(json=guided.json_schema)
        case "regex":
            return StructuredOutputsParams(regex=guided.regex)
        case "choice":
            return StructuredOutputsParams(choice=tuple(few("choice", guided.choice.choices)))
        case "grammar":
            return StructuredOutputsParams(grammar=guided.grammar)
    return StructuredOutputsParams()


def _given(message: Message, *names: str) -> dict:
    """The fields that a message has."""
    return {name: getattr(message, name) for name in names if message.HasField(name)}


def delta_of(event: TokenEvent) -> pb.TokenDelta:
    """What an event adds to its output."""
    return pb.TokenDelta(
        index=event.index,
        text=event.text,
        token_ids=event.token_ids,
        logprobs=positions(event.logprobs or ()),
    )


def finished_of(event: TokenEvent, *, prompt_len: int, num_tokens: int) -> pb.Finished:
    """The last word about an output of ``num_tokens``."""
    assert event.finish_reason is not None
    stop = event.stop_reason
    return pb.Finished(
        index=event.index,
        reason=_REASONS[event.finish_reason],
        usage=pb.Usage(
            prompt_tokens=prompt_len,
            completion_tokens=num_tokens,
            cached_tokens=event.num_cached_tokens,
        ),
        timing=None if event.metrics is None else timing_of(event.metrics),
        stop_text=stop if isinstance(stop, str) else None,
        stop_token_id=stop if isinstance(stop, int) else None,
    )


def timing_of(metrics: RequestMetrics) -> pb.Timing:
    """Times of the engine's clock as those of the calendar."""
    offset = time.time_ns() - time.monotonic_ns()

    def nanoseconds(seconds: float | None) -> int:
        return 0 if seconds is None else int(seconds * 1e9) + offset

    return pb.Timing(
        arrival=nanoseconds(metrics.arrival_time),
        first_scheduled=nanoseconds(metrics.first_scheduled_time),
        first_token=nanoseconds(metrics.first_token_time),
        last_token=nanoseconds(metrics.last_token_time),
    )


def positions(logprobs: Iterable[PositionLogprobs | None]) -> list[pb.PositionLogprobs]:
    """Log-probabilities position by position."""
    return [
        pb.PositionLogprobs(
            entries=[
                pb.TokenLogprob(
                    token_id=token_id,
                    logprob=entry.logprob,
                    rank=entry.rank or 0,
                    text=entry.decoded_token or "",
                )
                for token_id, entry in position.items()
            ]
        )
        for position in logprobs
        if position is not None
    ]
