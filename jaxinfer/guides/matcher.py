"""Where the text of one sample stands in its guide."""

import re
from collections.abc import Callable, Sequence
from operator import methodcaller
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from jaxinfer.bits import BITS, num_words
from jaxinfer.errors import UnsatisfiableGuide

if TYPE_CHECKING:
    from llguidance import LLMatcher

Answer = TypeVar("Answer")

#: The library's word for a text that nothing in this vocabulary can go on with.
_DEAD_END = "NoExtensionBias"
#: Of its words for states and expressions that are too many.
_USED_UP = "lexer error: too many"
#: Where it begins to quote the grammar.
_QUOTATION = re.compile(r"\n\s*\d+ \|")
#: Its words, and ours, for parts of a grammar that it would have to follow at once.
_CROWD = re.compile(r"Current row has (\d+) items; max is (\d+)(; consider [^;]*)?")
_CROWDED = (
    r"at one place of a text \1 parts may follow, of which at most \2 are allowed; in a schema each"
    " property of an object that is not required is four: require some, or have fewer"
)


class GuideMatcher:
    """Follows one text, token by token. For one thread at a time.

    The library's copies of a matcher add to the same states of a lexer, and when these are too many
    it fails all of them. Who has not made them himself goes on with a matcher that shares nothing.
    """

    def __init__(
        self,
        matcher: "LLMatcher",
        vocab_size: int,
        unshared: "Callable[[], LLMatcher] | None" = None,
    ):
        """``unshared``: makes one for the same guide; None: ``matcher`` shares nothing."""
        self._matcher = matcher
        self._unshared = unshared
        self._followed: list[int] = []
        self._vocab_size = vocab_size
        # One id more than there are: the library's own end of a text.
        self._words = np.zeros(num_words(vocab_size + 1), np.int32)

    def follow(self, token_ids: Sequence[int]) -> None:
        """Takes in what is new of ``token_ids``, all tokens of the text so far.

        Raises:
            UnsatisfiableGuide: they do not match, or the guide is too complex to tell.
        """
        for token in token_ids[len(self._followed) :]:
            if not self._ask(methodcaller("consume_token", token)):
                self._fail()
            self._followed.append(token)

    @property
    def is_accepting(self) -> bool:
        """The text may end here."""
        return self._ask(methodcaller("is_accepting"))

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
        self._ask(methodcaller("unsafe_compute_mask_ptr", words.ctypes.data, words.nbytes))
        ids_W = words.view(np.uint32)[: num_words(self._vocab_size)].copy()
        num_last = self._vocab_size % BITS
        if num_last:
            ids_W[-1] &= np.uint32((1 << num_last) - 1)
        return ids_W

    def _ask(self, question: Callable[["LLMatcher"], Answer]) -> Answer:
        answer = question(self._matcher)
        if self._has_failed and self._unshared is not None:
            if _USED_UP not in self._matcher.get_error():
                self._fail()
            self._matcher, self._unshared = self._unshared(), None
            self._matcher.consume_tokens(self._followed)
            answer = question(self._matcher)
        if self._has_failed:
            self._fail()
        return answer

    @property
    def _has_failed(self) -> bool:
        matcher = self._matcher
        return matcher.is_error() and not matcher.get_error().startswith(_DEAD_END)

    def _fail(self) -> None:
        raise UnsatisfiableGuide(
            f"structured_outputs, after {len(self._followed)} tokens: "
            f"{said(self._matcher.get_error())}"
        )


def said(error: str) -> str:
    """The library's words, short enough to pass on."""
    words = _QUOTATION.split(error.replace("<non-verbose/>", ""))[0]
    return _CROWD.sub(_CROWDED, " ".join(words.split()))[:300]
