"""What may come next in one sample, as far as that depends on the tokens before."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from jaxinfer.bits import all_ids, pack_ids


class BadWordsLike(Protocol):
    """What ``jaxinfer.sampling.BadWords`` is."""

    @property
    def needs_history(self) -> bool: ...

    def banned(self, history: Sequence[int]) -> set[int]: ...


class Constraint:
    """The limits that a sample's own tokens set to its next one: bad words of several tokens."""

    def __init__(self, bad_words: BadWordsLike, vocab_size: int):
        self._bad_words = bad_words
        self._vocab_size = vocab_size

    def allowed(self, generated: Sequence[int]) -> np.ndarray | None:
        """Packed bits of the ids that may follow these tokens; None: any."""
        banned = self._bad_words.banned(generated)
        if not banned:
            return None
        return all_ids(self._vocab_size) & ~pack_ids(banned, self._vocab_size)
