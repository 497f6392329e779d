"""The ``tokenizer.ggml`` keys of a GGUF file: tokens, their types and the special ones, checked."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from functools import cached_property
from typing import Any

from tokenizers import AddedToken

from jaxinfer.errors import TokenizerError


class TokenType(IntEnum):
    """The values of ``tokenizer.ggml.token_type``."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# Control tokens that end a text or a turn wherever they occur. A file names only one or two.
_END_TOKENS = frozenset(
    [
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|eom_id|>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<EOT>",
        "[EOT]",
        "[EOS]",
        "<eos>",
        "</s>",
        "<｜end▁of▁sentence｜>",
    ]
)

# What llama.cpp takes where a file does not say.
_DEFAULT_IDS = {
    "llama": {"bos": 1, "eos": 2, "unknown": 0},
    "t5": {"eos": 1, "unknown": 2, "padding": 0},
}

_TEMPLATE_NAMES = {
    "bos": "bos_token",
    "eos": "eos_token",
    "unknown": "unk_token",
    "padding": "pad_token",
}


class GGUFVocabulary:
    """Reads and checks the metadata of one file.

    Attributes:
        model: ``tokenizer.ggml.model``.
        tokens: every token as the file writes it, by id.
        types: the ``TokenType`` of each token.
    """

    def __init__(self, metadata: Mapping[str, Any]):
        """
        Raises:
            TokenizerError: no tokens, or a list of another length than theirs.
        """
        self._metadata = metadata
        self.model = self.text("model")
        # As llama.cpp names what a file leaves empty; no text encodes to it.
        self.tokens = [
            token or f"[EMPTY_{token_id}]" for token_id, token in enumerate(self.texts("tokens"))
        ]
        self.types = self.numbers("token_type", default=TokenType.NORMAL)

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of each token.

        Raises:
            TokenizerError: a token that is there twice.
        """
        ids = {token: token_id for token_id, token in enumerate(self.tokens)}
        if len(ids) != len(self.tokens):
            twice = next(token for index, token in enumerate(self.tokens) if ids[token] != index)
            raise TokenizerError(f"tokenizer.ggml.tokens has {twice!r} twice")
        return ids

    def text(self, key: str, default: str | None = None) -> str:
        """The text of that key; without a default the file must have it."""
        value = self._metadata.get(f"tokenizer.ggml.{key}", default)
        if not isinstance(value, str):
            raise TokenizerError(f"tokenizer.ggml.{key} must be a text, not {value!r:.80}")
        return value

    def texts(self, key: str) -> list[str]:
        """The list of texts that the file must have under that key."""
        values = self._metadata.get(f"tokenizer.ggml.{key}")
        if not isinstance(values, list) or not set(map(type, values)) <= {str}:
            raise TokenizerError(f"tokenizer.ggml.{key} must be a list of texts")
        return values

    def numbers(self, key: str, default: float | None = None) -> list[Any]:
        """One number a token; without a default the file must have them."""
        values = self.array(key)
        if values is None and default is not None:
            return [default] * len(self.tokens)
        if values is None or len(values) != len(self.tokens):
            raise TokenizerError(
                f"tokenizer.ggml.{key} must have {len(self.tokens)} numbers, one a token"
            )
        return values

    def array(self, key: str) -> list[Any] | None:
        """The numbers of that key, or None."""
        values = self._metadata.get(f"tokenizer.ggml.{key}")
        if values is None:
            return None
        values = values.tolist() if hasattr(values, "tolist") else values
        if not isinstance(values, list) or not set(map(type, values)) <= {int, float}:
            raise TokenizerError(f"tokenizer.ggml.{key} must be a list of numbers")
        return values

    def flag(self, key: str, default: bool) -> bool:
        """The bool of that key."""
        return bool(self._metadata.get(f"tokenizer.ggml.{key}", default))

    def special(self, name: str) -> int | None:
        """The id of the ``bos``, ``eos``, ``eot``, ``eom``, ``unknown`` or ``padding`` token."""
        default = _DEFAULT_IDS.get(self.model, {}).get(name)
        token_id = self._metadata.get(f"tokenizer.ggml.{name}_token_id", default)
        if token_id is None:
            return None
        if not isinstance(token_id, int) or not 0 <= token_id < len(self.tokens):
            raise TokenizerError(
                f"tokenizer.ggml.{name}_token_id is {token_id!r}, of {len(self.tokens)} tokens"
            )
        return token_id

    def framing(self, name: str, default: bool) -> int | None:
        """The id of the ``bos`` or ``eos`` token if every text gets it, else None."""
        if not self.flag(f"add_{name}_token", default):
            return None
        token_id = self.special(name)
        if token_id is None:
            raise TokenizerError(
                f"texts are to get a token that tokenizer.ggml.{name}_token_id does not name"
            )
        return token_id

    def of_type(self, *types: TokenType) -> list[str]:
        """The tokens of these types, in the order of their ids."""
        wanted = frozenset(types)
        return [
            token for token, kind in zip(self.tokens, self.types, strict=True) if kind in wanted
        ]

    def added(self, *types: TokenType, special: bool) -> list[AddedToken]:
        """The tokens of these types, to be found in the text as it is before anything else."""
        return [
            AddedToken(token, normalized=False, special=special) for token in self.of_type(*types)
        ]

    def end_tokens(self) -> list[int]:
        """The tokens that the file says, or whose names say, that they end a text or a turn."""
        named = [self.special(name) for name in ("eos", "eot", "eom")]
        known = [token for token in self.of_type(TokenType.CONTROL) if token in _END_TOKENS]
        return [
            token_id
            for token_id in (*named, *(self.ids[token] for token in known))
            if token_id is not None
        ]

    def template_variables(self) -> dict[str, str]:
        """``bos_token`` and the like, as chat templates know them."""
        ids = {variable: self.special(name) for name, variable in _TEMPLATE_NAMES.items()}
        return {
            variable: self.tokens[token_id]
            for variable, token_id in ids.items()
            if token_id is not None
        }

    def chat_templates(self) -> dict[str, str]:
        """The chat templates by name."""
        prefix = "tokenizer.chat_template"
        names = {key: key.removeprefix(prefix).removeprefix(".") for key in self._metadata}
        return {
            names[key] or "default": text
            for key, text in self._metadata.items()
            if (key == prefix or key.startswith(f"{prefix}.")) and isinstance(text, str)
        }
