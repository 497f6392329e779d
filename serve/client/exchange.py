"""One question and how its answer is read: what the sync client does as the async one does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from serve.client.messages import (
    Message,
    PromptLike,
    detokenize_request,
    generate_request,
    score_request,
    tokenize_request,
)
from serve.client.options import RequestOptions
from serve.client.reading import Reader, facts_of, score_of
from serve.client.results import Generation, Load, ModelInfo, Score, ServerInfo
from serve.proto import inference_pb2 as pb

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Exchange(Generic[T]):
    """A call with one answer.

    Attributes:
        method: of ``jaxinfer.v1.Inference``.
        request: its message.
        read: the answer's meaning.
        own_id: the request's id, where the client made it, so that nobody else has it.
    """

    method: str
    request: Any
    read: Callable[[Any], T]
    own_id: str | None = None


def own_id_of(message: pb.GenerateRequest, options: RequestOptions) -> str | None:
    """The id of a request, where the caller gave none."""
    return None if options.get("request_id") else message.request_id


def generate(prompt: PromptLike, options: RequestOptions) -> Exchange[Generation]:
    """All outputs of a prompt."""
    message = generate_request(prompt, options)

    def read(response: pb.GenerateResponse) -> Generation:
        reader = Reader(message)
        reader.take_response(response)
        reader.require_success()
        return reader.result()

    return Exchange(
        method="Generate", request=message, read=read, own_id=own_id_of(message, options)
    )


def score(
    prompt: str | Sequence[int],
    continuation: str | Sequence[int] | None,
    *,
    model: str,
    priority: int,
) -> Exchange[Score]:
    """How likely a text is."""
    message = score_request(prompt, continuation, model=model, priority=priority)
    return Exchange(method="Score", request=message, read=score_of, own_id=message.request_id)


def tokenize(
    text: str | Sequence[Message], *, add_special_tokens: bool, model: str
) -> Exchange[tuple[int, ...]]:
    """The tokens of a text or a conversation."""
    message = tokenize_request(text, add_special_tokens=add_special_tokens, model=model)
    return Exchange(method="Tokenize", request=message, read=lambda told: tuple(told.token_ids))


def detokenize(token_ids: Sequence[int], *, skip_special_tokens: bool, model: str) -> Exchange[str]:
    """The text of tokens."""
    message = detokenize_request(token_ids, skip_special_tokens=skip_special_tokens, model=model)
    return Exchange(method="Detokenize", request=message, read=lambda told: told.text)


def abort(request_id: str) -> Exchange[None]:
    """Ends a request."""
    message = pb.AbortRequest(request_id=request_id)
    return Exchange(method="Abort", request=message, read=lambda told: None)


def model_info(model: str) -> Exchange[ModelInfo]:
    """What is served."""
    message = pb.GetModelInfoRequest(model=model)
    return Exchange(method="GetModelInfo", request=message, read=partial(facts_of, ModelInfo))


def server_info() -> Exchange[ServerInfo]:
    """What serves it."""
    message = pb.GetServerInfoRequest()
    return Exchange(method="GetServerInfo", request=message, read=partial(facts_of, ServerInfo))


def load() -> Exchange[Load]:
    """How busy it is."""
    return Exchange(method="GetLoad", request=pb.GetLoadRequest(), read=partial(facts_of, Load))
