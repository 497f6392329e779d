"""Which bytes a token stands for, read from the decoder of a ``tokenizers`` object.

Text is made of bytes, not of tokens: one emoji may be four tokens. Once every token has its bytes,
decoding is concatenation, and a stream decodes to the same text as the whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers

from jaxinfer.errors import TokenizerError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, kw_only=True)
class Spelling:
    """How a vocabulary spells bytes.

    Attributes:
        token_bytes: the bytes of a token of the vocabulary, from how it is written there.
        added_bytes: the same for tokens that were added to the vocabulary, such as ``<|im_end|>``.
        drops_first_space: a text begins with a space that was put there to mark a word.
    """

    token_bytes: Callable[[str], bytes]
    added_bytes: Callable[[str], bytes]
    drops_first_space: bool = False


def spelling_of(backend: tokenizers.Tokenizer) -> Spelling:
    """Reads the decoder of a backend.

    Raises:
        TokenizerError: a decoder that does not map each token to bytes of its own.
    """
    if backend.decoder is None:
        raise TokenizerError(f"the tokenizer has no decoder; {_KNOWN}")
    # A component pickles as the JSON that tokenizer.json has for it.
    steps = _flatten(json.loads(backend.decoder.__getstate__()))
    if any(step["type"] == "ByteLevel" for step in steps):
        return Spelling(token_bytes=_from_byte_alphabet, added_bytes=str.encode)
    replacements = [
        _replacement(step) for step in steps if step["type"] in ("Replace", "Metaspace")
    ]
    has_bytes = any(step["type"] == "ByteFallback" for step in steps)

    def token_bytes(token: str) -> bytes:
        for pattern, content in replacements:
            token = token.replace(pattern, content)
        byte = _BYTE_TOKEN.fullmatch(token) if has_bytes else None
        return bytes.fromhex(byte[1]) if byte else token.encode()

    return Spelling(
        token_bytes=token_bytes,
        added_bytes=token_bytes,
        drops_first_space=any(map(_drops_first_space, steps)),
    )


_KNOWN = "known: ByteLevel, Metaspace, and sequences of Replace, ByteFallback, Fuse and Strip"


def _flatten(decoder: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if decoder["type"] == "Sequence":
        return [step for part in decoder["decoders"] for step in _flatten(part)]
    if decoder["type"] not in (
        "ByteLevel",
        "Metaspace",
        "Replace",
        "ByteFallback",
        "Fuse",
        "Strip",
    ):
        raise TokenizerError(f"unknown decoder {decoder['type']!r} in the tokenizer; {_KNOWN}")
    return [decoder]


def _replacement(step: Mapping[str, Any]) -> tuple[str, str]:
    if step["type"] == "Metaspace":
        return step["replacement"], " "
    if "String" not in step["pattern"]:
        raise TokenizerError(f"a decoder that replaces by pattern, {step['pattern']}; {_KNOWN}")
    return step["pattern"]["String"], step["content"]


def _drops_first_space(step: Mapping[str, Any]) -> bool:
    if step["type"] == "Metaspace":
        return step.get("prepend_scheme", "always") != "never"
    if step["type"] != "Strip":
        return False
    if (step["content"], step["start"], step["stop"]) != (" ", 1, 0):
        raise TokenizerError(f"a decoder that strips more than the first space, {step}; {_KNOWN}")
    return True


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's bijection: printable Latin-1 stands for itself, other bytes for U+0100 and up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    return alphabet | {chr(0x100 + index): byte for index, byte in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _from_byte_alphabet(token: str) -> bytes:
    try:
        return bytes(_BYTE_OF[character] for character in token)
    except KeyError:  # a padding token in plain text, which no text encodes to
        return token.encode()
