"""Text as tokens arrive: nothing shown early that a later token could change."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from jaxinfer.tokenizer.tokenizer import Tokenizer


class IncrementalDecoder:
    """Decodes one stream of tokens; all that was pushed and flushed equals ``decode`` of all ids.

    Only the unfinished bytes of one UTF-8 character are ever held back. Ids without a token
    (between the vocabulary and the width of the logits) are empty text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        continues_text: bool = False,
    ):
        """
        Args:
            continues_text: the stream continues a prompt. A first space is then a space, where at
                the beginning of a text it may only mark the first word (SentencePiece).
        """
        self._tokenizer = tokenizer
        self._skips_special = skip_special_tokens
        self._drops_space = tokenizer.drops_first_space and not continues_text
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: Sequence[int]) -> str:
        """The text that these tokens complete; may be empty.

        Raises:
            InvalidPrompt: an id that is not an integer, or negative.
        """
        tokenizer = self._tokenizer
        data = b"".join(
            tokenizer.token_bytes(token_id)
            for token_id in ids
            if not (self._skips_special and tokenizer.is_special(token_id))
        )
        return self._without_first_space(self._utf8.decode(data))

    def flush(self) -> str:
        """The end of the text: an unfinished character becomes U+FFFD."""
        return self._without_first_space(self._utf8.decode(b"", final=True))

    def _without_first_space(self, text: str) -> str:
        if self._drops_space and text:
            self._drops_space = False
            return text.removeprefix(" ")
        return text
