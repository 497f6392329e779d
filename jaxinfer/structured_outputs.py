"""What the text of an output must look like: vLLM's names, checked before any work."""

import json
import re
import reprlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from jaxinfer.errors import InvalidParameter

#: Bytes of a schema, a regex, a grammar, or of all choices together, unless limits say otherwise.
MAX_GUIDE_BYTES = 65_536
#: Levels of objects and arrays in a schema, unless limits say otherwise.
MAX_SCHEMA_NESTING = 64
#: What limits may allow: what reads a schema goes down 128 levels.
MOST_GUIDE_BYTES, MOST_SCHEMA_NESTING = 2**20, 120
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

    @property
    def guide(self) -> Guide:
        """What is to be compiled, within the limits that hold by default; see ``guide_within``."""
        return self.guide_within()

    def guide_within(
        self, *, max_bytes: int = MAX_GUIDE_BYTES, max_nesting: int = MAX_SCHEMA_NESTING
    ) -> Guide:
        """What is to be compiled; read once.

        Args:
            max_bytes: of a schema, a regex, a grammar, or of all choices together.
            max_nesting: levels of objects and arrays in a schema.

        Raises:
            InvalidParameter: none or several are set, one is no text of its kind, too long or too
                deeply nested; names the value, what is allowed, and the fix.
        """
        bounds = _Bounds(max_bytes, max_nesting)
        kept: tuple[_Bounds, Guide] | None = self.__dict__.get("_kept")
        if kept is None or kept[0] != bounds:
            kept = bounds, self._read(bounds)
            self.__dict__["_kept"] = kept
        return kept[1]

    def _read(self, bounds: "_Bounds") -> Guide:
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
                return self._json(bounds.schema_text(self.json))
            case "json_object":
                if self.json_object is not True:
                    _refuse("json_object", self.json_object, "True, False or None")
                return self._json('{"type": "object"}')
            case "choice":
                return Guide("choice", bounds.choice_text(self.choice))
            case kind:
                return Guide(kind, bounds.text(kind, getattr(self, kind)))

    def _json(self, schema: str) -> Guide:
        return Guide("json", schema, is_compact=self.disable_any_whitespace)


@dataclass(frozen=True)
class _Bounds:
    """How large a guide may be, and its reading within that."""

    max_bytes: int
    max_nesting: int

    def schema_text(self, schema: object) -> str:
        if isinstance(schema, dict):
            self._verify_extent(schema)
            try:
                text = json.dumps(schema)
            except (TypeError, ValueError) as error:
                raise InvalidParameter(f"structured_outputs.json is no JSON: {error}") from error
            return self.text("json", text)
        text = self.text("json", schema)
        if nesting_of(text) > self.max_nesting:
            self._refuse_nesting()
        try:
            value = json.loads(text)
        except ValueError as error:
            raise InvalidParameter(
                f"structured_outputs.json = {reprlib.repr(text)} is no JSON: {error}"
            ) from error
        if not isinstance(value, dict | bool):
            fix = "see https://json-schema.org"
            _refuse("json", text, "a JSON schema, which is an object", fix)
        return text

    def choice_text(self, choices: object) -> str:
        if isinstance(choices, str | bytes) or not isinstance(choices, Sequence):
            _refuse("choice", choices, "a list of strings")
        if not 1 <= len(choices) <= MAX_CHOICES:
            raise InvalidParameter(
                f"structured_outputs.choice holds {len(choices)} strings: from 1 to {MAX_CHOICES} "
                "are allowed"
            )
        num_bytes = 0
        for choice in choices:
            num_bytes += len(self.text("choice", choice))
            self._verify_least("choice", num_bytes)
        return json.dumps(list(choices), ensure_ascii=False)

    def text(self, kind: str, text: object) -> str:
        if not isinstance(text, str):
            _refuse(kind, text, "a string")
        if not text:
            _refuse(kind, text, "not empty", "leave structured_outputs out for any text")
        if len(text) > self.max_bytes:
            self._refuse_length(kind, str(len(text)))
        try:
            num_bytes = len(text.encode())
        except UnicodeEncodeError:
            _refuse(kind, text, "Unicode text, without half a surrogate pair")
        if num_bytes > self.max_bytes:
            self._refuse_length(kind, str(num_bytes))
        return text

    def _verify_extent(self, schema: dict) -> None:
        """Of a value that somebody built: it may be large, or contain itself."""
        level: list[Collection] = [schema]
        num_bytes = 0  # of its text, at least
        for _ in range(self.max_nesting):
            num_bytes += 2 * sum(map(len, level))  # a value, and what stands beside it
            self._verify_least("json", num_bytes)
            inner = [value for container in level for value in _values(container)]
            keys = [key for container in level if isinstance(container, dict) for key in container]
            num_bytes += sum(len(text) for text in (*inner, *keys) if isinstance(text, str))
            self._verify_least("json", num_bytes)
            level = [value for value in inner if _is_container(value)]
            if not level:
                return
        self._refuse_nesting()

    def _verify_least(self, kind: str, num_bytes: int) -> None:
        if num_bytes > self.max_bytes:
            self._refuse_length(kind, f"more than {self.max_bytes}")

    def _refuse_length(self, kind: str, num_bytes: str) -> NoReturn:
        raise InvalidParameter(
            f"structured_outputs.{kind} has {num_bytes} bytes: at most {self.max_bytes} are allowed"
        )

    def _refuse_nesting(self) -> NoReturn:
        raise InvalidParameter(
            f"structured_outputs.json is nested more than {self.max_nesting} levels deep: use "
            "$defs and $ref for what lies deeper"
        )


def nesting_of(text: str) -> int:
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


def _values(container: Collection) -> Collection:
    return container.values() if isinstance(container, dict) else container


def _is_container(value: object) -> bool:
    return isinstance(value, (dict, list, tuple))


def _refuse(name: str, value: object, allowed: str, fix: str | None = None) -> NoReturn:
    advice = f"; {fix}" if fix else ""
    raise InvalidParameter(
        f"structured_outputs.{name} = {reprlib.repr(value)} is not allowed: it must be {allowed}"
        f"{advice}"
    )
