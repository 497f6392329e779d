"""One sample of a request, from the queue to its last token."""

from array import array
from collections.abc import Iterable
from collections.abc import Sequence as Items

import numpy as np

from jaxinfer.engine.constraint import Constraint
from jaxinfer.engine.failure_record import FailureRecord
from jaxinfer.engine.prefix import next_key, root_key
from jaxinfer.engine.request import Request
from jaxinfer.engine.slots import Slot
from jaxinfer.engine.step import Admission, Row


class Family:
    """What the n samples of one request share.

    Attributes:
        arrival: the number of the request in the order of submission.
        max_tokens: of each sample, clipped to what the context holds.
        needs_prompt_logprobs: they are wanted, and not all were read back yet.
        num_cached_tokens: prompt tokens that the prefix cache held when the first sample was
            admitted; None before.
    """

    def __init__(
        self,
        request: Request,
        *,
        arrival: int,
        samplings: Iterable[object],
        max_tokens: int,
        num_groups: int,
        constraints: Items[Constraint] = (),
    ):
        """
        Args:
            samplings: for each sample what its slot uploads.
            constraints: for each sample how its next token depends on those before; none: not.
        """
        self.request = request
        self.arrival = arrival
        self.max_tokens = max_tokens
        self.prompt_len = len(request.prompt_token_ids)
        self.needs_prompt_logprobs = request.params.prompt_logprobs is not None
        self.num_cached_tokens: int | None = None
        self.sequences = [
            Sequence(self, index, sampling, num_groups) for index, sampling in enumerate(samplings)
        ]
        for sequence, constraint in zip(self.sequences, constraints, strict=bool(constraints)):
            sequence.constraint = constraint

    @property
    def is_begun(self) -> bool:
        """Some sample of it was admitted once."""
        return self.num_cached_tokens is not None


class Sequence:
    """Tokens, slot and pages of one sample.

        |<----- prompt_len ----->|<-- output, read back -->|<-- num_in_flight -->|
        |<----------------- len(tokens) ------------------>|
        |<-- num_committed -->|                              K/V of steps that were read back
        |<----------------- num_computed ----------------->| K/V of steps that were launched

    In this stay in a slot, ``tokens[:prefill_len]`` are computed in chunks; what comes after is
    decoded. ``pages[group][column]`` is a page, or 0 once it fell out of the group's window.
    """

    constraint: Constraint | None = None
    slot: Slot | None
    prefill_len: int
    num_computed: int
    num_committed: int
    num_in_flight: int
    num_published: int

    def __init__(self, family: Family, index: int, sampling: object, num_groups: int):
        self.family = family
        self.index = index
        self.sampling = sampling
        self.tokens = array("i", family.request.prompt_token_ids)
        self.is_finished = False
        self.failures = FailureRecord()
        self.pages: tuple[list[int], ...] = tuple([] for _ in range(num_groups))
        self._keys = [root_key(family.request.cache_salt)]
        self.leave()

    @property
    def priority(self) -> int:
        return self.family.request.priority

    @property
    def rank(self) -> tuple[bool, int, int, int]:
        """Lower is sooner: by priority, then by arrival; before them suspects, of whom the one that
        came last is most likely the reason."""
        if self.failures.is_suspect:
            return False, 0, -self.family.arrival, self.index
        return True, -self.priority, self.family.arrival, self.index

    @property
    def prompt_len(self) -> int:
        return self.family.prompt_len

    @property
    def is_prefilling(self) -> bool:
        return self.num_computed < self.prefill_len

    @property
    def num_remaining(self) -> int:
        """Tokens that may still be planned for."""
        return self.prompt_len + self.family.max_tokens - len(self.tokens) - self.num_in_flight

    @property
    def is_ending(self) -> bool:
        """It surely ends with what is in flight."""
        return not self.is_prefilling and self.num_remaining == 0

    @property
    def can_decode(self) -> bool:
        """Whether a next token may be planned for."""
        return self.num_remaining > 0

    @property
    def needs_host(self) -> bool:
        """The host looks at every token before it lets many more be sampled."""
        has_stops = bool(self.family.request.params.stop_strings)
        return has_stops or self.constraint is not None

    @property
    def scores_prompt(self) -> bool:
        """Its prompt rows bring the request's prompt log-probabilities."""
        return self.index == 0 and self.family.needs_prompt_logprobs

    # Its way through a slot.

    def enter(self, slot: Slot) -> Admission:
        """Begins a stay, with ``num_computed`` tokens taken over from others."""
        self.slot = slot
        self.num_committed = self.num_computed
        return Admission(
            slot=slot.index,
            generation=slot.generation,
            sampling=self.sampling,
            prompt=self._slice(0, self.prompt_len),
            generated=self._slice(self.prompt_len, len(self.tokens)),
        )

    def prompt_row(self, end: int) -> Row:
        """The next chunk, up to ``end``."""
        assert self.slot is not None
        start, self.num_computed = self.num_computed, end
        is_last = end == self.prefill_len
        self.num_in_flight += is_last
        targets = None
        if self.scores_prompt:
            targets = self._slice(start + 1, min(end + 1, self.prompt_len))
        return Row(
            slot=self.slot.index,
            generation=self.slot.generation,
            start=start,
            tokens=self._slice(start, end),
            samples=is_last,
            targets=targets,
        )

    def decode_row(self, num_steps: int) -> Row:
        """The next ``num_steps`` decode steps."""
        assert self.slot is not None
        start = self.num_computed
        self.num_computed += num_steps
        self.num_in_flight += num_steps
        return Row(slot=self.slot.index, generation=self.slot.generation, start=start)

    def commit(self, row: Row, token_ids: list[int]) -> None:
        """A row was read back, and with it these tokens."""
        self.tokens.extend(token_ids)
        self.num_in_flight -= len(token_ids)
        self.num_committed = row.start + (len(token_ids) if row.is_decode else row.num_tokens)
        if row.targets is not None and row.samples:
            self.family.needs_prompt_logprobs = False

    def leave(self) -> None:
        """Nothing of it is on the device (any more)."""
        self.slot = None
        self.prefill_len = len(self.tokens)
        self.num_computed = 0
        self.num_committed = 0
        self.num_in_flight = 0
        self.num_published = 0

    # Its tokens.

    @property
    def generated(self) -> array:
        """Those of the output, as far as they were read back."""
        return self.tokens[self.prompt_len :]

    def page_key(self, column: int, page_size: int) -> tuple[bytes, bytes]:
        """Key and tokens (int32) of a full page of known tokens, for the prefix cache."""
        while len(self._keys) <= column + 1:
            tokens = self._page_tokens(len(self._keys) - 1, page_size)
            self._keys.append(next_key(self._keys[-1], tokens))
        return self._keys[column + 1], self._page_tokens(column, page_size)

    def _page_tokens(self, column: int, page_size: int) -> bytes:
        return self.tokens[column * page_size : (column + 1) * page_size].tobytes()

    def _slice(self, begin: int, end: int) -> np.ndarray:
        return np.frombuffer(self.tokens[begin:end].tobytes(), np.int32)
