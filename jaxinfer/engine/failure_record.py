"""What failed steps say about one of the sequences that were in them."""

#: So many tokens after its last failure prove that a sequence was not the reason: a prompt, and
#: some decode steps.
PROOF_TOKENS = 4


class FailureRecord:
    """Steps of a sequence that failed, with no proof of its innocence after them.

    Attributes:
        is_suspect: there were two; whether because of it is seen when it is alone.
    """

    def __init__(self) -> None:
        self._num_failures = 0
        self._num_alone = 0
        self._proved_at = 0
        self.is_suspect = False

    @property
    def is_guilty(self) -> bool:
        """Two failed in which nobody else was."""
        return self._num_alone >= 2

    def note(self, num_tokens: int, *, is_alone: bool) -> None:
        """A step failed. ``num_tokens``: that the sequence has. ``is_alone``: nobody else has any
        part in it."""
        if self.is_proved_by(num_tokens):
            self.clear()
        self._num_failures += 1
        self._num_alone += is_alone
        self._proved_at = num_tokens + PROOF_TOKENS
        self.is_suspect = self._num_failures >= 2

    def is_proved_by(self, num_tokens: int) -> bool:
        """With so many tokens it has shown that it was not the reason."""
        return num_tokens >= self._proved_at

    def clear(self) -> None:
        """What was is held against it no more."""
        self._num_failures = self._num_alone = 0
        self.is_suspect = False
