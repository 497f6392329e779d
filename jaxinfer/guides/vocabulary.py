"""A tokenizer's tokens as llguidance takes them."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Protocol

from jaxinfer.errors import Unsupported

if TYPE_CHECKING:
    from llguidance import LLTokenizer


class Spelled(Protocol):
    """What is asked of ``jaxinfer.tokenizer.Tokenizer``."""

    def token_bytes(self, token_id: int) -> bytes: ...

    def is_special(self, token_id: int) -> bool: ...


def read_vocabulary(
    tokenizer: Spelled, vocab_size: int, eos_token_ids: Collection[int]
) -> "LLTokenizer":
    """The bytes of the ids below ``vocab_size``, the width of the logits.

    No text is made of special tokens, of ``eos_token_ids``, and of ids without a token. The end of
    a text is an id of the library's own, ``vocab_size``: which of the model's tokens may end an
    output is up to the request.

    Raises:
        Unsupported: llguidance is not installed.
    """
    try:
        from llguidance import LLTokenizer, TokenizerWrapper
    except ImportError as error:
        raise Unsupported(
            "structured_outputs need llguidance, which is not installed: pip install"
            " 'jaxinfer[serve]'"
        ) from error
    vocabulary = _Vocabulary(tokenizer, vocab_size, eos_token_ids)
    vocabulary.reader = LLTokenizer(TokenizerWrapper(vocabulary))
    return vocabulary.reader


class _Vocabulary:
    """The attributes that llguidance looks for."""

    bos_token_id = None
    reader: "LLTokenizer | None" = None

    def __init__(self, tokenizer: Spelled, vocab_size: int, eos_token_ids: Collection[int]):
        ends = frozenset(eos_token_ids)
        special = [i for i in range(vocab_size) if i in ends or tokenizer.is_special(i)]
        self.eos_token_id = vocab_size
        self.tokens: Sequence[bytes] = [
            *(tokenizer.token_bytes(token_id) for token_id in range(vocab_size)),
            b"<end>",
        ]
        self.special_token_ids: Sequence[int] = [*special, vocab_size]

    def __call__(self, text: bytes) -> list[int]:
        """Some tokens of a text, for a grammar that insists on one spelling of it."""
        return [] if self.reader is None else self.reader.greedy_tokenize(text.decode())
