"""One sample of a request, from the queue to its last token."""

from array import array
from collections.abc import Iterable
from collections.abc import Sequence as Items
from typing import Protocol

import numpy as np

from jaxinfer.engine.prefix import next_key, root_key
from jaxinfer.engine.request import Request
from jaxinfer.engine.slots import Slot


class BadWordsLike(Protocol):
    """What ``jaxinfer.sampling.BadWords`` does."""

    def banned(self, history: Items[int]) -> set[int]:
        """Ids that may not follow these generated tokens."""
        ...


class Family:
    """What the n samples of one request share.

    ``arrival``: the number of the request in the order of submission. ``needs_prompt_logprobs``
    until all of them were read back. ``num_cached_tokens``: prompt tokens found in the prefix cache
    when the first sample was admitted first; None before.
    """

    def __init__(
        self,
        request: Request,
        *,
        arrival: int,
        samplings: Iterable[object],
        max_tokens: int,
        num_groups: int,
        bad_words: BadWordsLike | None = None,
    ):
        """
        Args:
            samplings: for each sample what its slot uploads.
            max_tokens: clipped to what the context holds.
            bad_words: those that only the host can watch.
        """
        self.request = request
        self.bad_words = bad_words
        self.arrival = arrival
        self.prompt_len = len(request.prompt_token_ids)
        self.max_tokens = max_tokens
        self.needs_prompt_logprobs = request.params.prompt_logprobs is not None
        self.num_cached_tokens: int | None = None
        self.sequences = [
            Sequence(self, index, sampling, num_groups) for index, sampling in enumerate(samplings)
        ]


class Sequence:
    """Tokens, slot and pages of one sample.

        |<----- prompt_len ----->|<-- output, read back -->|<-- num_in_flight -->|
        |<----------------- len(tokens) ------------------>|
        |<-- num_committed -->|                              K/V of steps that were read back
        |<----------------- num_computed ----------------->| K/V of steps that were launched

    In this stay in a slot, ``tokens[:prefill_len]`` are computed in chunks; what comes after is
    decoded. ``pages[group][column]`` is a page, or 0 once it fell out of the group's window.
    """

    def __init__(self, family: Family, index: int, sampling: object, num_groups: int):
        self.family = family
        self.index = index
        self.sampling = sampling
        self.tokens = array("i", family.request.prompt_token_ids)
        self.is_finished = False
        self.pages: tuple[list[int], ...] = tuple([] for _ in range(num_groups))
        self._keys = [root_key(family.request.cache_salt)]
        self.leave()

    def leave(self) -> None:
        """Nothing of it is on the device (any more)."""
        self.slot: Slot | None = None
        self.prefill_len = len(self.tokens)
        self.num_computed = 0
        self.num_committed = 0
        self.num_in_flight = 0
        self.num_published = 0

    @property
    def rank(self) -> tuple[int, int, int]:
        """Lower is sooner: priority, then arrival."""
        return -self.priority, self.family.arrival, self.index

    @property
    def priority(self) -> int:
        return self.family.request.priority

    @property
    def prompt_len(self) -> int:
        return self.family.prompt_len

    @property
    def is_prefilling(self) -> bool:
        return self.num_computed < self.prefill_len

    @property
    def num_remaining(self) -> int:
        """Tokens that may still be planned for; 0: it surely ends with what is in flight."""
        return self.prompt_len + self.family.max_tokens - len(self.tokens) - self.num_in_flight

    @property
    def can_decode(self) -> bool:
        """Bad words of several tokens are watched by the host: it must know all tokens so far."""
        knows_all = self.num_in_flight == 0 or self.family.bad_words is None
        return self.num_remaining > 0 and knows_all

    @property
    def is_ending(self) -> bool:
        return not self.is_prefilling and self.num_remaining == 0

    @property
    def scores_prompt(self) -> bool:
        """Its prompt rows bring the request's prompt log-probabilities."""
        return self.index == 0 and self.family.needs_prompt_logprobs

    @property
    def needs_host(self) -> bool:
        """The host looks at each token before the one after the next is sampled."""
        has_stops = bool(self.family.request.params.stop_strings)
        return has_stops or self.family.bad_words is not None

    def banned_now(self) -> frozenset[int]:
        """Tokens that would complete a bad word of several."""
        if self.family.bad_words is None:
            return frozenset()
        return frozenset(self.family.bad_words.banned(self.tokens[self.prompt_len :].tolist()))

    def slice(self, begin: int, end: int) -> np.ndarray:
        """Tokens as int32, a copy."""
        return np.frombuffer(self.tokens[begin:end].tobytes(), np.int32)

    def page_key(self, column: int, page_size: int) -> tuple[bytes, bytes]:
        """Key and tokens (int32) of a full page of known tokens, for the prefix cache."""
        while len(self._keys) <= column + 1:
            self._keys.append(next_key(self._keys[-1], self._page(len(self._keys) - 1, page_size)))
        return self._keys[column + 1], self._page(column, page_size)

    def _page(self, column: int, page_size: int) -> bytes:
        return self.tokens[column * page_size : (column + 1) * page_size].tobytes()
