"""What callers ask for, as messages."""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from jaxinfer.errors import InvalidParameter, InvalidPrompt
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.structured_outputs import MOST_GUIDE_BYTES, MOST_SCHEMA_NESTING, Guide
from serve.client.options import RequestOptions
from serve.proto import inference_pb2 as pb

#: ``{"role": ..., "content": ...}``.
Message = Mapping[str, str]
#: A text, token ids, ``{"prompt_token_ids": [...]}``, or a conversation: messages, oldest first.
PromptLike = str | Sequence[int] | Mapping[str, Any] | Sequence[Message]

_SAMPLING = tuple(field.name for field in fields(SamplingParams))


def generate_request(prompt: PromptLike, options: RequestOptions) -> pb.GenerateRequest:
    """The message of a request, with an id.

    Raises:
        InvalidPrompt, InvalidParameter: what no message can hold; the rest is the server's to say.
    """
    params = params_of(options)
    message = pb.GenerateRequest(
        request_id=options.get("request_id") or uuid.uuid4().hex,
        model=options.get("model", ""),
        cache=pb.Cache(
            bypass=options.get("bypass_prefix_cache", False), salt=options.get("cache_salt", "")
        ),
        priority=options.get("priority"),
        **_prompt(prompt),
    )
    try:
        _write_params(params, message)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidParameter(f"sampling parameters that no message can hold: {error}") from error
    return message


def params_of(options: RequestOptions) -> SamplingParams:
    """The sampling parameters among the keywords."""
    given: dict[str, Any] = {name: options[name] for name in _SAMPLING if name in options}  # type: ignore[literal-required]
    params = options.get("params")
    return SamplingParams(**given) if params is None else replace(params, **given)


def score_request(
    prompt: str | Sequence[int], continuation: str | Sequence[int] | None, **fields: Any
) -> pb.ScoreRequest:
    """The message that asks how likely ``continuation`` is after ``prompt``; None: the prompt."""
    message = pb.ScoreRequest(request_id=uuid.uuid4().hex, **fields, **_text_or_ids(prompt))
    if isinstance(continuation, str):
        message.continuation_text = continuation
    elif continuation is not None:
        message.continuation_token_ids.CopyFrom(_token_ids(continuation))
    return message


def tokenize_request(
    text: str | Sequence[Message], *, add_special_tokens: bool, model: str
) -> pb.TokenizeRequest:
    """The message that asks for the tokens of a text or a conversation."""
    form = {"text": text} if isinstance(text, str) else {"chat": _chat(text)}
    return pb.TokenizeRequest(model=model, add_special_tokens=add_special_tokens, **form)


def detokenize_request(
    token_ids: Sequence[int], *, skip_special_tokens: bool, model: str
) -> pb.DetokenizeRequest:
    """The message that asks for the text of tokens."""
    ids = _token_ids(token_ids).ids
    return pb.DetokenizeRequest(model=model, token_ids=ids, skip_special_tokens=skip_special_tokens)


def _prompt(prompt: PromptLike) -> dict[str, Any]:
    if isinstance(prompt, Mapping):
        if set(prompt) not in ({"prompt"}, {"prompt_token_ids"}):
            raise InvalidPrompt(
                f"a prompt that is a dict holds 'prompt' or 'prompt_token_ids', not {[*prompt]}"
            )
        [prompt] = prompt.values()
    elif not isinstance(prompt, str) and len(prompt) and isinstance(prompt[0], Mapping):
        return {"chat": _chat(prompt)}  # type: ignore[arg-type]  # its first entry tells
    return _text_or_ids(prompt)  # type: ignore[arg-type]


def _text_or_ids(prompt: str | Sequence[int]) -> dict[str, Any]:
    return {"text": prompt} if isinstance(prompt, str) else {"token_ids": _token_ids(prompt)}


def _token_ids(ids: Sequence[int]) -> pb.TokenIds:
    try:
        return pb.TokenIds(ids=ids)
    except (ValueError, TypeError) as error:
        raise InvalidPrompt(f"token ids must be integers from 0 to 2**32 - 1: {error}") from error


def _chat(messages: Sequence[Message]) -> pb.ChatMessages:
    try:
        return pb.ChatMessages(
            messages=[
                pb.ChatMessage(role=message["role"], content=message["content"])
                for message in messages
            ]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidPrompt(
            f'a message must be {{"role": text, "content": text}}: {error!r}'
        ) from error


def _guided(guide: Guide) -> pb.Guided:
    if guide.is_compact:
        raise InvalidParameter(
            "structured_outputs.disable_any_whitespace: no message can say so; leave it out"
        )
    match guide.kind:
        case "json":
            return pb.Guided(json_schema=guide.text)
        case "choice":
            return pb.Guided(choice=pb.Choice(choices=json.loads(guide.text)))
        case "regex":
            return pb.Guided(regex=guide.text)
    return pb.Guided(grammar=guide.text)


def _write_params(params: SamplingParams, message: pb.GenerateRequest) -> None:
    if params.allowed_token_ids is not None and len(params.allowed_token_ids) == 0:
        # On the wire no ids are all of them.
        raise InvalidParameter("allowed_token_ids = [] allows nothing: use None to allow all")
    message.sampling.MergeFrom(
        pb.Sampling(
            n=params.n,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=0 if params.top_k == -1 else params.top_k,
            min_p=params.min_p,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            repetition_penalty=params.repetition_penalty,
            # A negative seed means the same as the unsigned number of its bits.
            seed=None if params.seed is None else params.seed % 2**64,
            logit_bias=params.logit_bias,
            allowed_token_ids=params.allowed_token_ids,
            bad_words=params.bad_words,
        )
    )
    if params.structured_outputs is not None:
        guide = params.structured_outputs.guide_within(
            max_bytes=MOST_GUIDE_BYTES, max_nesting=MOST_SCHEMA_NESTING
        )  # the server knows what it allows
        message.guided.CopyFrom(_guided(guide))
    message.stopping.MergeFrom(
        pb.Stopping(
            max_tokens=params.max_tokens,
            min_tokens=params.min_tokens,
            stop=params.stop_strings,
            stop_token_ids=params.stop_token_ids,
            ignore_eos=params.ignore_eos,
            include_stop_in_output=params.include_stop_str_in_output,
        )
    )
    message.output.MergeFrom(
        pb.Output(
            logprobs=params.logprobs,
            prompt_logprobs=params.prompt_logprobs,
            token_ids_only=not params.detokenize,
            skip_special_tokens=params.skip_special_tokens,
        )
    )
