"""Bodies into what the engine is asked for."""

import re
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from jaxinfer.errors import InvalidParameter, Unsupported
from jaxinfer.sampling_params import RequestLimits, SamplingParams
from serve.errors import NotFound
from serve.frontend import Ask, Conversation
from serve.openai.ask import OpenAiAsk
from serve.openai.bodies import ChatBody, CompletionBody, GenerationBody
from serve.openai.prompts import read_messages, read_prompts
from serve.openai.structured import read_structured
from serve.openai.validation import shown, validated

COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"

#: Fields that are parameters of the same name.
_PARAMETERS = (
    "n",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "stop",
    "top_k",
    "min_p",
    "repetition_penalty",
    "min_tokens",
    "stop_token_ids",
    "ignore_eos",
    "include_stop_str_in_output",
    "skip_special_tokens",
    "allowed_token_ids",
    "bad_words",
    "prompt_logprobs",
)
#: What a template may not be given here: fields of the body say it, or nobody does.
_TEMPLATES_OWN = (
    "add_generation_prompt",
    "chat_template",
    "messages",
    "self",
    "template",
    "template_limits",
    "tokenize",
    "tools",
)


def read_completion(
    body: Mapping[str, object], timeout: float | None, max_prompts: int
) -> OpenAiAsk:
    """A body of ``/v1/completions``; see ``read_body``."""
    read = validated(CompletionBody, body)
    prompts = read_prompts(read.prompt, max_prompts)
    n = 1 if read.n is None else read.n
    if read.best_of is not None and read.best_of != n:
        raise Unsupported(f"best_of = {shown(read.best_of)} is not supported here: give n alone")
    most = _max_tokens(read)
    has_output = most != 0
    if not has_output and not read.echo:
        raise InvalidParameter("max_tokens = 0 is not allowed without echo: ask for at least 1")
    changes: dict[str, Any] = {"logprobs": read.logprobs}
    if most is not None:
        changes["max_tokens"] = most if has_output else 1
    if read.echo and read.logprobs is not None and read.prompt_logprobs is None:
        changes["prompt_logprobs"] = read.logprobs
    # One object for all: it is checked once a prompt, but made once.
    params = _read_params(read, **changes)
    answer_id = f"cmpl-{read.request_id or uuid.uuid4().hex}"
    special = read.add_special_tokens is None or read.add_special_tokens
    return OpenAiAsk(
        url=COMPLETIONS,
        id=answer_id,
        asks=tuple(
            _ask(
                read,
                request_id=answer_id if len(prompts) == 1 else f"{answer_id}-{index}",
                prompt=prompt,
                params=params,
                timeout=timeout,
                add_special_tokens=special,
            )
            for index, prompt in enumerate(prompts)
        ),
        echo=bool(read.echo),
        num_logprobs=read.logprobs,
        has_output=has_output,
        **_form(read),
    )


def read_chat(body: Mapping[str, object], timeout: float | None, max_prompts: int = 1) -> OpenAiAsk:
    """A body of ``/v1/chat/completions``, which has one prompt; see ``read_body``."""
    read = validated(ChatBody, body)
    num_logprobs = (read.top_logprobs or 0) if read.logprobs else None
    if read.top_logprobs is not None and not read.logprobs:
        raise InvalidParameter("top_logprobs needs logprobs = true: set both, or none")
    answer_id = f"chatcmpl-{read.request_id or uuid.uuid4().hex}"
    ask = _ask(
        read,
        request_id=answer_id,
        prompt=Conversation(messages=read_messages(read.messages), template=_read_template(read)),
        # Where a client names no bound, the context is one.
        params=_read_params(read, logprobs=num_logprobs, max_tokens=_max_tokens(read)),
        timeout=timeout,
    )
    return OpenAiAsk(url=CHAT, id=answer_id, asks=(ask,), num_logprobs=num_logprobs, **_form(read))


#: The endpoints that generate, and what reads their bodies.
ENDPOINTS: Mapping[str, Callable[[Mapping[str, object], float | None, int], OpenAiAsk]] = {
    COMPLETIONS: read_completion,
    CHAT: read_chat,
}


def read_body(
    url: str,
    body: Mapping[str, object],
    *,
    timeout: float | None = None,
    max_prompts: int = RequestLimits.max_prompts,
) -> OpenAiAsk:
    """What a body asks of an endpoint; ``timeout`` in seconds.

    Raises:
        NotFound: no such endpoint.
        InvalidPrompt, InvalidParameter: a field of the wrong type, or that nobody knows.
        Unsupported: a field that would change the answer, and is not served.
    """
    if url not in ENDPOINTS:
        raise NotFound(f"url {url!r:.200} is not served here: {' and '.join(ENDPOINTS)} are")
    return ENDPOINTS[url](body, timeout, max_prompts)


def _ask(read: GenerationBody, **fields: Any) -> Ask:
    return Ask(
        model=read.model or "",
        priority=read.priority or 0,
        cache_salt=read.cache_salt or "",
        **fields,
    )


def _max_tokens(read: GenerationBody) -> int | None:
    """The newer name wins; some clients send both, to either endpoint.

    ``max_new_tokens`` takes nothing back: it comes from the settings of a task, beside a default
    of the program that runs it.
    """
    most = read.max_tokens if read.max_completion_tokens is None else read.max_completion_tokens
    if most is None or read.max_new_tokens is None:
        return read.max_new_tokens if most is None else most
    return min(most, read.max_new_tokens)


def _form(read: GenerationBody) -> dict[str, Any]:
    """What both endpoints say about the form of the answer."""
    if read.stream_options is not None and not read.stream:
        raise InvalidParameter("stream_options needs stream = true: set both, or none")
    if read.stream and read.prompt_logprobs is not None:
        raise Unsupported("prompt_logprobs is not supported in a stream: leave one of them out")
    options = read.stream_options
    continuous = options is not None and bool(options.continuous_usage_stats)
    return {
        "created": int(time.time()),
        "stream": bool(read.stream),
        "include_usage": options is not None and bool(options.include_usage),
        "continuous_usage": continuous,
        "tokens_as_ids": bool(read.return_tokens_as_token_ids),
        "shows_token_ids": bool(read.return_token_ids),
        "shows_prompt_logprobs": read.prompt_logprobs is not None,
    }


def _read_params(read: GenerationBody, **changes: Any) -> SamplingParams:
    given = {
        name: value for name in _PARAMETERS if (value := getattr(read, name)) is not None
    } | changes
    return SamplingParams(
        **given,
        logit_bias=_read_bias(read.logit_bias),
        structured_outputs=read_structured(read),
    )


def _read_bias(bias: Mapping[str, float] | None) -> dict[int, float] | None:
    if not bias:
        return None
    for token_id in bias:
        if not re.fullmatch("[0-9]{1,10}", token_id):
            raise InvalidParameter(
                f"logit_bias has the key {token_id!r:.100}: keys must be token ids"
            )
    return {int(token_id): value for token_id, value in bias.items()}


def _read_template(read: ChatBody) -> dict[str, Any]:
    template = dict(read.chat_template_kwargs or {})
    for name in _TEMPLATES_OWN:
        if name in template:
            raise InvalidParameter(f"chat_template_kwargs must not hold {name!r}: leave it out")
    if read.add_generation_prompt is not None:
        template["add_generation_prompt"] = read.add_generation_prompt
    return template
