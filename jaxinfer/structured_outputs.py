"""What the text of an output must look like: vLLM's names, checked before any work."""

import json
import re
import reprlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

from jaxinfer.errors import InvalidParameter

#: Bytes of a schema, a regex, a grammar, or of all choices together.
MAX_GUIDE_BYTES = 65_536
#: Levels of objects and arrays in a schema.
MAX_SCHEMA_NESTING = 64
MAX_CHOICES = 1024

_KINDS = ("json", "regex", "choice", "grammar", "json_object")
#: A string, whether or not it ends, or a bracket. Linear whatever the text: it never goes back.
_STRING_OR_BRACKET = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{]|[\]}]', re.DOTALL)


@dataclass(frozen=True)
class Guide:
    """A text that outputs must match, in the form in which it is compiled.

    ``kind``: "json" (``text`` is a schema), "regex", "choice" (a JSON list of strings), or
    "grammar". ``is_compact``: no white space between the parts of a JSON text.
    """

    kind: str
    text: str
    is_compact: bool = False

    def __str__(self) -> str:
        return f"structured_outputs.{self.kind} = {reprlib.repr(self.text)}"


@dataclass(frozen=True, kw_only=True)
class StructuredOutputsParams:
    """The one thing that the text of each output must match, from its first character to its last.

    Making one never fails; ``verify`` refuses what is wrong.

    Attributes:
        json: a JSON schema, as a text or as a dict.
        regex: a regular expression without look-around and references back (Rust's syntax).
        choice: one of these strings.
        grammar: a context-free grammar in Lark's syntax, with a rule ``start``, or in GBNF, with a
            rule ``root``.
        json_object: any JSON object.
        disable_any_whitespace: no white space between the parts of a JSON text.
    """

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False

    def verify(self) -> None:
        """Checks every value.

        Raises:
            InvalidParameter: as ``guide``.
        """
        _ = self.guide

    @cached_property
    def guide(self) -> Guide:
        """What is to be compiled.

        Raises:
            InvalidParameter: none or several are set, one is no text of its kind, too long or too
                deeply nested; names the value, what is allowed, and the fix.
        """
        if not isinstance(self.disable_any_whitespace, bool):
            _refuse("disable_any_whitespace", self.disable_any_whitespace, "True or False")
        given = [name for name in _KINDS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            raise InvalidParameter(
                f"structured_outputs has {' and '.join(given) or 'nothing'}: set exactly one of "
                f"{', '.join(_KINDS)}"
            )
        match given[0]:
            case "json":
                return self._json(_schema_text(self.json))
            case "json_object":
                if self.json_object is not True:
                    _refuse("json_object", self.json_object, "True, False or None")
                return self._json('{"type": "object"}')
            case "choice":
                return Guide("choice", _choice_text(self.choice))
            case kind:
                return Guide(kind, _verified_text(kind, getattr(self, kind)))

    def _json(self, schema: str) -> Guide:
        return Guide("json", schema, is_compact=self.disable_any_whitespace)


def _schema_text(schema: object) -> str:
    if isinstance(schema, dict):
        _verify_extent(schema)
        try:
            text = json.dumps(schema)
        except (TypeError, ValueError) as error:
            raise InvalidParameter(f"structured_outputs.json is no JSON: {error}") from error
        return _verified_text("json", text)
    text = _verified_text("json", schema)
    if _nesting(text) > MAX_SCHEMA_NESTING:
        _refuse_nesting()
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidParameter(
            f"structured_outputs.json = {reprlib.repr(text)} is no JSON: {error}"
        ) from error
    if not isinstance(value, dict | bool):
        _refuse("json", text, "a JSON schema, which is an object", "see https://json-schema.org")
    return text


def _nesting(text: str) -> int:
    """Levels of objects and arrays in a JSON text, without recursion; at least as many as a parser
    would go down."""
    deepest = depth = 0
    for match in _STRING_OR_BRACKET.finditer(text):
        if match[0] in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif match[0] in "]}":
            depth -= 1
    return deepest


def _verify_extent(schema: dict) -> None:
    """Of a value that somebody built: it may be large, or contain itself."""
    level: list[Collection] = [schema]
    num_bytes = 0  # of its text, at least
    for _ in range(MAX_SCHEMA_NESTING):
        num_bytes += 2 * sum(map(len, level))  # a value, and what stands beside it
        _verify_least(num_bytes)
        inner = [value for container in level for value in _values(container)]
        keys = [key for container in level if isinstance(container, dict) for key in container]
        num_bytes += sum(len(text) for text in (*inner, *keys) if isinstance(text, str))
        _verify_least(num_bytes)
        level = [value for value in inner if _is_container(value)]
        if not level:
            return
    _refuse_nesting()


def _verify_least(num_bytes: int) -> None:
    if num_bytes > MAX_GUIDE_BYTES:
        _refuse_length("json", f"more than {MAX_GUIDE_BYTES}")


def _values(container: Collection) -> Collection:
    return container.values() if isinstance(container, dict) else container


def _is_container(value: object) -> bool:
    return isinstance(value, (dict, list, tuple))


def _choice_text(choices: object) -> str:
    if isinstance(choices, str | bytes) or not isinstance(choices, Sequence):
        _refuse("choice", choices, "a list of strings")
    if not 1 <= len(choices) <= MAX_CHOICES:
        raise InvalidParameter(
            f"structured_outputs.choice holds {len(choices)} strings: from 1 to {MAX_CHOICES} are "
            "allowed"
        )
    num_bytes = 0
    for choice in choices:
        num_bytes += len(_verified_text("choice", choice))
        if num_bytes > MAX_GUIDE_BYTES:
            _refuse_length("choice", f"more than {MAX_GUIDE_BYTES}")
    return json.dumps(list(choices), ensure_ascii=False)


def _verified_text(kind: str, text: object) -> str:
    if not isinstance(text, str):
        _refuse(kind, text, "a string")
    if not text:
        _refuse(kind, text, "not empty", "leave structured_outputs out for any text")
    if len(text) > MAX_GUIDE_BYTES:
        _refuse_length(kind, str(len(text)))
    try:
        num_bytes = len(text.encode())
    except UnicodeEncodeError:
        _refuse(kind, text, "Unicode text, without half a surrogate pair")
    if num_bytes > MAX_GUIDE_BYTES:
        _refuse_length(kind, str(num_bytes))
    return text


def _refuse(name: str, value: object, allowed: str, fix: str | None = None) -> NoReturn:
    advice = f"; {fix}" if fix else ""
    raise InvalidParameter(
        f"structured_outputs.{name} = {reprlib.repr(value)} is not allowed: it must be {allowed}"
        f"{advice}"
    )


def _refuse_length(kind: str, num_bytes: str) -> NoReturn:
    raise InvalidParameter(
        f"structured_outputs.{kind} has {num_bytes} bytes: at most {MAX_GUIDE_BYTES} are allowed"
    )


def _refuse_nesting() -> NoReturn:
    raise InvalidParameter(
        f"structured_outputs.json is nested more than {MAX_SCHEMA_NESTING} levels deep: use $defs "
        "and $ref for what lies deeper"
    )
