"""Prompts and conversations, as bodies write them."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxinfer.errors import InvalidPrompt, Unsupported
from serve.model import Message
from serve.openai.validation import shown

#: Messages of a conversation, and parts of one.
MAX_MESSAGES = 10_000
#: What a message may have besides; where it is null or empty it says nothing.
_ELSEWHERE = ("audio", "function_call", "tool_calls", "tool_call_id")


def read_prompts(prompt: object, most: int) -> list[str | Sequence[int]]:
    """The prompts of a completion, so many at most: texts, and lists of token ids.

    Raises:
        InvalidPrompt: neither, none, or too many.
    """
    if isinstance(prompt, list) and (not prompt or not isinstance(prompt[0], int)):
        if not prompt:
            raise InvalidPrompt("prompt is empty: give a text, or at least one token id")
        if len(prompt) > most:
            raise InvalidPrompt(f"prompt holds {len(prompt)} prompts: at most {most} are allowed")
        return [_read_prompt(each, f"prompt[{index}]") for index, each in enumerate(prompt)]
    return [_read_prompt(prompt, "prompt")]


def _read_prompt(prompt: object, name: str) -> str | Sequence[int]:
    if isinstance(prompt, str):
        return prompt
    # True is an int to isinstance, and 1 to an array.
    if isinstance(prompt, list) and set(map(type, prompt)) <= {int}:
        return prompt
    raise InvalidPrompt(
        f"{name} = {shown(prompt)} is not allowed: it must be a text or a list of token ids"
    )


def read_messages(messages: Sequence[object]) -> list[Message]:
    """A conversation as templates take it.

    Raises:
        InvalidPrompt: too many messages, or one without a role or content.
        Unsupported: a message that holds something else than text.
    """
    if len(messages) > MAX_MESSAGES:
        raise InvalidPrompt(
            f"messages holds {len(messages)} messages: at most {MAX_MESSAGES} are allowed"
        )
    return [_read_message(each, f"messages[{index}]") for index, each in enumerate(messages)]


def _read_message(message: object, name: str) -> Message:
    if not isinstance(message, Mapping):
        raise InvalidPrompt(
            f"{name} = {shown(message)} is not allowed: it must be an object with a role "
            "and a content"
        )
    for field in _ELSEWHERE:
        if message.get(field):
            raise Unsupported(f"{name}.{field} is not supported here: give text alone")
    read: dict[str, Any] = {"role": _read_text(message.get("role"), f"{name}.role")}
    content = message.get("content")
    if isinstance(content, list):
        read["content"] = _read_parts(content, f"{name}.content")
    else:
        read["content"] = _read_text(content, f"{name}.content")
    if message.get("name") is not None:
        read["name"] = _read_text(message["name"], f"{name}.name")
    return read


def _read_parts(parts: Sequence[object], name: str) -> str:
    """The texts of a message that comes in parts, each on lines of its own."""
    if len(parts) > MAX_MESSAGES:
        raise InvalidPrompt(f"{name} holds {len(parts)} parts: at most {MAX_MESSAGES} are allowed")
    texts = []
    for index, part in enumerate(parts):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if not isinstance(part, Mapping) or not isinstance(kind, str):
            raise InvalidPrompt(
                f"{name}[{index}] is not allowed: it must be an object with a type and a text"
            )
        if kind != "text":
            raise Unsupported(f"{name}[{index}] is of type {kind!r:.100}: only text is supported")
        texts.append(_read_text(part.get("text"), f"{name}[{index}].text"))
    return "\n".join(texts)


def _read_text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise InvalidPrompt(f"{name} = {shown(value)} is not allowed: it must be a text")
    return value
