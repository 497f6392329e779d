"""A body is checked against its fields; each of the API's other fields has an answer, too."""

import reprlib
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from jaxinfer.errors import InvalidParameter, Unsupported
from serve.openai.bodies import Body

B = TypeVar("B", bound=Body)

#: Items of a list or an object; a prompt and messages have bounds of their own.
MAX_ITEMS = 4096
_BOUNDED_ELSEWHERE = ("prompt", "messages", "tokens")

#: They say who asks, or how fast, never what the answer is.
IGNORED = frozenset(
    {
        "include_reasoning",
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "spaces_between_special_tokens",
        "store",
        "user",
    }
)

#: They would change the answer, and are not served; with the values that ask for nothing.
REFUSED: Mapping[str, Collection[object]] = {
    "add_special_tokens": (False,),
    "audio": (),
    "chat_template": (),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "modalities": (["text"],),
    "num_beams": (1,),
    "reasoning_effort": ("none",),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "verbosity": (),
    "web_search_options": (),
}

#: Of ``stream_options``.
_IGNORED_OPTIONS = frozenset({"include_obfuscation"})


def validated(kind: type[B], body: Mapping[str, object]) -> B:
    """The body with its types checked; null is as good as nothing.

    Raises:
        InvalidParameter: a value of the wrong type, or a field that nobody knows.
        Unsupported: a field that would change the answer, and is not served.
    """
    given = {name: value for name, value in body.items() if value is not None}
    options = given.get("stream_options")
    if isinstance(options, dict):
        given["stream_options"] = {
            name: value for name, value in options.items() if name not in _IGNORED_OPTIONS
        }
    _require_known(kind, given)
    known = {name: value for name, value in given.items() if name in kind.model_fields}
    for name, value in known.items():
        if name not in _BOUNDED_ELSEWHERE:
            _require_few(name, value)
        if name == "structured_outputs" and isinstance(value, dict):
            _require_few("structured_outputs.choice", value.get("choice"))
    try:
        return kind.model_validate(known)
    except ValidationError as error:
        raise InvalidParameter(_in_words(error)) from error


def _require_known(kind: type[Body], given: Mapping[str, object]) -> None:
    for name, value in given.items():
        if name in kind.model_fields or name in IGNORED:
            continue
        if name not in REFUSED:
            raise InvalidParameter(f"{name:.200} is not a field of this request: leave it out")
        if value not in REFUSED[name]:
            raise Unsupported(f"{name} is not supported here: leave it out")


def _require_few(name: str, value: object) -> None:
    if isinstance(value, list | dict) and len(value) > MAX_ITEMS:
        raise InvalidParameter(f"{name} holds {len(value)} items: at most {MAX_ITEMS} are allowed")


def _in_words(error: ValidationError) -> str:
    """Of the first value that is wrong, what may be there; of a union, any of its kinds."""
    problems = error.errors(include_url=False, include_context=False)
    first = problems[0]
    where = _dotted(first["loc"])
    if first["type"] == "missing":
        return f"{where} is missing: give it"
    if first["type"] == "extra_forbidden":
        return f"{where} is not known: leave it out"
    wanted = {
        _wanted(problem["type"], problem["msg"]): None
        for problem in problems
        if _dotted(problem["loc"]) == where
    }
    found = shown(first["input"])
    return f"{where} = {found} is not allowed: it must be {' or '.join(list(wanted)[:4])}"


def _wanted(kind: str, message: str) -> str:
    return "an object" if kind == "model_type" else message.removeprefix("Input should be ")


def _dotted(path: tuple[int | str, ...]) -> str:
    """As one writes it: the names of kinds, which unions put in, are left out."""
    parts = [str(path[0])]
    for part in path[1:]:
        if isinstance(part, int):
            parts.append(f"[{part}]")
        elif part.replace("_", "").isalnum() and part not in ("str", "int", "float", "bool"):
            parts.append(f".{part:.100}")
    return "".join(parts)


def shown(value: Any) -> str:
    """A short repr, whatever it is of."""
    try:
        return reprlib.repr(value)
    except ValueError:  # an integer too long to print
        return f"({type(value).__name__} too long to show)"
