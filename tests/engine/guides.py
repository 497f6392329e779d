"""Guides over the letters of the fake tokenizer, worked out without the library."""

import itertools
import re
from functools import cache

from jaxinfer.structured_outputs import StructuredOutputsParams

#: Every letter but "a", which is the end-of-sequence token.
LETTERS = "bcdefghijkl"

GUIDES = {
    "loop": StructuredOutputsParams(regex="(bc|d)*e?"),
    "any": StructuredOutputsParams(regex="[b-f]*"),
    "words": StructuredOutputsParams(choice=["bcd", "bce", "kkkkkk", "l", "lb"]),
    "length": StructuredOutputsParams(regex="[b-l]{4}"),
    "rules": StructuredOutputsParams(grammar='start: "b" start "c" | "d"'),
}

_PLAIN = {
    "loop": "(bc|d)*e?",
    "any": "[b-f]*",
    "words": "bcd|bce|kkkkkk|lb?",
    "length": "[b-l]{4}",
}


@cache
def follows(name: str, text: str) -> tuple[frozenset[int], bool]:
    """The tokens that may follow a text that a guide allows, and whether it may end there."""
    letters = [letter for letter in LETTERS if _may_begin(name, text + letter)]
    return frozenset(ord(letter) - 97 for letter in letters), _matches(name, text)


def _may_begin(name: str, text: str) -> bool:
    if name == "rules":
        return re.fullmatch("b*|b*dc*", text) is not None and text.count("c") <= text.count("b")
    if name == "words":
        return any(word.startswith(text) for word in GUIDES["words"].choice)
    ends = itertools.chain.from_iterable(itertools.product(LETTERS, repeat=n) for n in range(4))
    return any(_matches(name, text + "".join(end)) for end in ends)


def _matches(name: str, text: str) -> bool:
    if name == "rules":
        return re.fullmatch("b*dc*", text) is not None and text.count("c") == text.count("b")
    return re.fullmatch(_PLAIN[name], text) is not None


def name_of(params: StructuredOutputsParams | None) -> str | None:
    """The name by which ``follows`` knows a guide."""
    if params is None:
        return None
    return next(name for name, guide in GUIDES.items() if guide == params)
