"""A guide as a grammar in llguidance's dialect of Lark."""

import json

from jaxinfer.errors import InvalidParameter
from jaxinfer.structured_outputs import MAX_SCHEMA_NESTING, Guide, nesting_of

#: Any token may come that spells a part of the text, not only the one that the tokenizer would
#: choose: the other limits of a request may forbid that one. The last such line counts.
_ANY_SPELLING = '\n%llguidance {"no_forcing": true}\n'
#: White space between the parts of a JSON text. Without an end, small models do not find one.
_WHITE_SPACE = r"[ \t\n\r]{1,40}"
#: Keys of a schema that become intersections of regular expressions.
_INTERSECTED = ("multipleOf", "pattern", "patternProperties", "allOf", "not", "x-guidance")
#: Keys that nest it deeper than it is written.
_REFERRING = ("$ref", "$dynamicRef", "$recursiveRef")
#: Characters of a guide from which on what is harmless in a few may take gigabytes.
_MANY = 1024
#: Bytes of a grammar in GBNF: translating it takes time that grows with the square.
MAX_GBNF_BYTES = 16_384


def lark_of(guide: Guide) -> str:
    """The grammar of a guide.

    Raises:
        InvalidParameter: a grammar in GBNF that cannot be translated.
    """
    return _SOURCES[guide.kind](guide) + _ANY_SPELLING


def needs_trial(guide: Guide) -> bool:
    """Whether the library's limits may not hold: what it intersects, or has much of, it may look
    at for long, and what nests deeply may overflow its stack, which would end the process."""
    if len(guide.text) > _MANY:
        return True
    match guide.kind:
        case "choice" | "regex":
            return False
        case "json":
            if nesting_of(guide.text) > MAX_SCHEMA_NESTING:
                return True
            # Read and written once more, for a key can be spelled in many ways.
            schema = json.dumps(json.loads(guide.text))
            return any(f'"{key}"' in schema for key in _INTERSECTED + _REFERRING)
    return True


def _of_json(guide: Guide) -> str:
    schema = json.loads(guide.text)
    if schema is True:
        schema = {}
    if isinstance(schema, dict):
        spaces: dict = {"whitespace_pattern": _WHITE_SPACE}
        if guide.is_compact:
            spaces = {"whitespace_flexible": False}
        wishes = schema.get("x-guidance", {})
        schema |= {"x-guidance": spaces | (wishes if isinstance(wishes, dict) else {})}
    return f"start: %json {json.dumps(schema)}"


def _of_regex(guide: Guide) -> str:
    from llguidance import LLMatcher

    [grammar] = json.loads(LLMatcher.grammar_from_regex(guide.text))["grammars"]
    return grammar["lark_grammar"]


def _of_choice(guide: Guide) -> str:
    choices = (json.dumps(choice, ensure_ascii=False) for choice in json.loads(guide.text))
    return f"start: {' | '.join(choices)}"


def _of_grammar(guide: Guide) -> str:
    if _is_lark(guide.text):
        return guide.text
    if len(guide.text) > MAX_GBNF_BYTES:
        raise InvalidParameter(
            f"structured_outputs.grammar has no rule start, so it is read as GBNF, and has "
            f"{len(guide.text)} characters: at most {MAX_GBNF_BYTES} are allowed there; write it "
            "in Lark's syntax"
        )
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return gbnf_to_lark(guide.text)
    except Exception as error:  # of the library's own kinds, and recursion errors
        raise InvalidParameter(
            f"{guide} is neither a grammar in Lark's syntax, with a rule start, nor one in GBNF: "
            f"{error!s:.300}"
        ) from error


def _is_lark(text: str) -> bool:
    lines = (line.strip() for line in text.splitlines())
    return any(
        line.startswith("%llguidance") or line.replace(" ", "").startswith("start:")
        for line in lines
    )


_SOURCES = {
    "json": _of_json,
    "regex": _of_regex,
    "choice": _of_choice,
    "grammar": _of_grammar,
}
