"""Sequences of tokens that an output must not contain."""

from collections.abc import Sequence


class BadWords:
    """Which token may not come next, so that none of ``sequences`` is ever completed.

    A sequence of one token is forbidden always (``always``, for the slot's own mask). A longer one
    forbids its last token after the tokens before it, which the host must watch (``banned``, for
    the mask of a step).
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        """``sequences``: each with at least one token id."""
        self.always = frozenset(sequence[0] for sequence in sequences if len(sequence) == 1)
        self._endings = tuple(
            (tuple(sequence[:-1]), sequence[-1]) for sequence in sequences if len(sequence) > 1
        )

    @property
    def needs_history(self) -> bool:
        """Whether ``banned`` can ever name a token."""
        return bool(self._endings)

    def banned(self, history: Sequence[int]) -> set[int]:
        """Ids that may not follow the generated tokens ``history``, besides ``always``."""
        return {last for before, last in self._endings if tuple(history[-len(before) :]) == before}
