"""What callers hand over as prompts, read into token ids."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxinfer.errors import InvalidParameter, InvalidPrompt
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.tokenizer import Tokenizer

#: A text, ``{"prompt": text}``, or ``{"prompt_token_ids": [...]}``.
PromptLike = str | Mapping[str, Any]
#: ``{"role": ..., "content": ...}``.
Message = Mapping[str, Any]

_FORMS = "a str or {'prompt_token_ids': [...]}"


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt: its token ids, and its text where it came as one."""

    text: str | None
    token_ids: Sequence[int]


def read_prompts(
    prompts: PromptLike | Sequence[PromptLike], tokenizer: Tokenizer | None
) -> list[Prompt]:
    """One prompt or a list of them. Whether the ids are in the vocabulary is for the engine to say.

    Raises:
        InvalidPrompt: of another form, or a text where there is no tokenizer.
    """
    if isinstance(prompts, str | Mapping):
        return [_read_prompt(prompts, tokenizer)]
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes):
        raise InvalidPrompt(f"prompts must be {_FORMS} or a list of such, not {prompts!r:.100}")
    return [_read_prompt(prompt, tokenizer) for prompt in prompts]


def _read_prompt(prompt: PromptLike, tokenizer: Tokenizer | None) -> Prompt:
    if isinstance(prompt, str):
        return Prompt(text=prompt, token_ids=encode(prompt, tokenizer))
    if not isinstance(prompt, Mapping) or set(prompt) not in ({"prompt"}, {"prompt_token_ids"}):
        raise InvalidPrompt(f"a prompt must be {_FORMS}, not {prompt!r:.100}")
    if "prompt" in prompt:
        return Prompt(text=prompt["prompt"], token_ids=encode(prompt["prompt"], tokenizer))
    token_ids = prompt["prompt_token_ids"]
    if not isinstance(token_ids, Sequence) or isinstance(token_ids, str | bytes):
        raise InvalidPrompt(f"prompt_token_ids must be a list of integers, not {token_ids!r:.100}")
    return Prompt(text=None, token_ids=token_ids)


def encode(text: str, tokenizer: Tokenizer | None, *, add_special_tokens: bool = True) -> list[int]:
    """The token ids of a text.

    Raises:
        InvalidPrompt: no text, or no tokenizer.
    """
    if tokenizer is None:
        raise InvalidPrompt(
            "this LLM has no tokenizer, so a prompt cannot be a text: give "
            "{'prompt_token_ids': [...]}, or make the LLM with tokenizer="
        )
    return tokenizer.encode(text, add_special_tokens=add_special_tokens)


def read_conversations(
    messages: Sequence[Message] | Sequence[Sequence[Message]],
) -> list[Sequence[Message]]:
    """One conversation or a list of them, as a list."""
    if isinstance(messages, Sequence) and messages and isinstance(messages[0], Sequence):
        return list(messages)  # type: ignore[arg-type]  # the first entry tells which of the two
    return [messages]  # type: ignore[list-item]


def params_for_each(
    sampling_params: SamplingParams | Sequence[SamplingParams] | None, num_prompts: int
) -> list[SamplingParams]:
    """The sampling parameters of each prompt; None stands for the defaults.

    Raises:
        InvalidParameter: not SamplingParams, or a list of another length than the prompts.
    """
    if sampling_params is None or isinstance(sampling_params, SamplingParams):
        return [sampling_params or SamplingParams()] * num_prompts
    params = list(sampling_params) if isinstance(sampling_params, Sequence) else [sampling_params]
    for entry in params:
        if not isinstance(entry, SamplingParams):
            raise InvalidParameter(f"sampling_params must be SamplingParams, not {entry!r:.100}")
    if len(params) != num_prompts:
        raise InvalidParameter(
            f"{len(params)} sampling_params for {num_prompts} prompts: give one, or one a prompt"
        )
    return params
