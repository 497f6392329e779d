"""Where the text of one sample stands in its guide."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxinfer.bits import BITS, num_words
from jaxinfer.errors import UnsatisfiableGuide

if TYPE_CHECKING:
    from llguidance import LLMatcher


#: The library's word for a text that nothing in this vocabulary can go on with.
_DEAD_END = "NoExtensionBias"
#: Where it begins to quote the grammar.
_QUOTATION = re.compile(r"\n\s*\d+ \|")


class GuideMatcher:
    """Follows one text, token by token. For one thread at a time."""

    def __init__(self, matcher: "LLMatcher", vocab_size: int):
        self._matcher = matcher
        self._num_tokens = 0
        self._vocab_size = vocab_size
        # One id more than there are: the library's own end of a text.
        self._words = np.zeros(num_words(vocab_size + 1), np.int32)

    def follow(self, token_ids: Sequence[int]) -> None:
        """Takes in what is new of ``token_ids``, all tokens of the text so far.

        Raises:
            UnsatisfiableGuide: they do not match, or the guide is too complex to tell.
        """
        new = token_ids[self._num_tokens :]
        self._num_tokens = len(token_ids)
        for token in new:
            if not self._matcher.consume_token(token):
                self._fail()

    @property
    def is_accepting(self) -> bool:
        """The text may end here."""
        return self._matcher.is_accepting()

    @property
    def is_complete(self) -> bool:
        """It must: nothing may follow."""
        return self._matcher.is_stopped() and self._matcher.stop_reason() == "NoExtension"

    def next_ids(self) -> np.ndarray:
        """Packed bits (uint32 ``[W]``) of the tokens that may follow; those that end a text are not
        among them.

        Raises:
            UnsatisfiableGuide: the guide is too complex to tell.
        """
        words = self._words
        if self._matcher.is_stopped():
            return np.zeros(num_words(self._vocab_size), np.uint32)
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if self._matcher.is_error() and not self._matcher.get_error().startswith(_DEAD_END):
            self._fail()
        ids_W = words.view(np.uint32)[: num_words(self._vocab_size)].copy()
        num_last = self._vocab_size % BITS
        if num_last:
            ids_W[-1] &= np.uint32((1 << num_last) - 1)
        return ids_W

    def _fail(self) -> None:
        raise UnsatisfiableGuide(
            f"structured_outputs, after {self._num_tokens} tokens: "
            f"{said(self._matcher.get_error())}"
        )


def said(error: str) -> str:
    """The library's words, short enough to pass on."""
    words = _QUOTATION.split(error.replace("<non-verbose/>", ""))[0]
    return " ".join(words.split())[:300]
