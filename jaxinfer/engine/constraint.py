"""What may come next in one sample, as far as that depends on the tokens before."""

from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Protocol

import numpy as np

from jaxinfer.bits import all_ids, pack_ids
from jaxinfer.errors import UnsatisfiableGuide
from jaxinfer.guides import CompiledGuide, GuideMatcher
from jaxinfer.sampling_params import SamplingParams


class BadWordsLike(Protocol):
    """What ``jaxinfer.sampling.BadWords`` is."""

    @property
    def always(self) -> frozenset[int]: ...

    @property
    def needs_history(self) -> bool: ...

    def banned(self, history: Sequence[int]) -> set[int]: ...


class OwnIds:
    """The ids that a request itself allows, and those that end it, as its slots know them.

    Packed bits (uint32 ``[W]``), made when they are first asked for: a long queue must not hold
    them.
    """

    def __init__(
        self,
        params: SamplingParams,
        bad_words: BadWordsLike | None,
        *,
        eos_token_ids: Collection[int],
        vocab_size: int,
    ):
        self._params, self._bad_words = params, bad_words
        self._eos_token_ids = eos_token_ids
        self.vocab_size = vocab_size

    @property
    def are_all(self) -> bool:
        """Nothing is forbidden, and nothing ends it but what ends every text."""
        params = self._params
        forbids = params.allowed_token_ids is not None or self._bad_words is not None
        return not forbids and not params.stop_token_ids

    @cached_property
    def allowed(self) -> np.ndarray:
        ids = self._params.allowed_token_ids
        allowed_W = all_ids(self.vocab_size) if ids is None else pack_ids(ids, self.vocab_size)
        if self._bad_words is not None:
            allowed_W &= ~pack_ids(self._bad_words.always, self.vocab_size)
        return allowed_W

    @cached_property
    def stops(self) -> np.ndarray:
        ids = set(self._params.stop_token_ids or ())
        if not self._params.ignore_eos:
            ids.update(self._eos_token_ids)
        return pack_ids(ids, self.vocab_size)

    def may_end_after(self, num_tokens: int) -> bool:
        return num_tokens >= self._params.min_tokens


class Constraint:
    """The limits that a sample's own tokens set to its next one: those of a guide, and of bad words
    of several tokens.

    ``generated`` below: all tokens of the sample so far, none of which ended it.
    """

    def __init__(
        self, own: OwnIds, bad_words: BadWordsLike | None, guide: CompiledGuide | None = None
    ):
        self._own, self._bad_words, self._guide = own, bad_words, guide

    def allowed(self, generated: Sequence[int]) -> np.ndarray | None:
        """Packed bits of the ids that may follow these tokens; None: any. None of them where the
        text is complete, and no id is left to end it.

        Raises:
            UnsatisfiableGuide: nothing is left, and the text is not complete.
        """
        banned: set[int] = set()
        if self._bad_words is not None:
            banned = self._bad_words.banned(generated)
        if self._guide is None:
            banned_W = pack_ids(banned, self._own.vocab_size)
            return all_ids(self._own.vocab_size) & ~banned_W if banned else None
        allowed_W = self._guided(self._guide, generated)
        kept_W = allowed_W & ~pack_ids(banned, self._own.vocab_size) if banned else allowed_W
        return kept_W if kept_W.any() else allowed_W

    def completes(self, generated: Sequence[int]) -> bool:
        """The guide's text is complete with these tokens: nothing may follow.

        Raises:
            UnsatisfiableGuide: the guide is too complex to tell.
        """
        if self._guide is None:
            return False
        self._matcher.follow(generated)
        return self._matcher.is_complete and self._own.may_end_after(len(generated))

    @cached_property
    def _matcher(self) -> GuideMatcher:
        assert self._guide is not None
        return self._guide.matcher()

    def _guided(self, guide: CompiledGuide, generated: Sequence[int]) -> np.ndarray:
        """A token that ends the sample is allowed where the text may end, and nowhere else."""
        matcher, own = self._matcher, self._own
        matcher.follow(generated)
        may_end = matcher.is_accepting and own.may_end_after(len(generated))
        allowed_W = matcher.next_ids() & ~own.stops
        if may_end:
            allowed_W |= own.stops
        allowed_W &= own.allowed
        if not may_end and not allowed_W.any():
            raise UnsatisfiableGuide(
                f"{guide.guide}: after {len(generated)} tokens no other matches it that "
                "allowed_token_ids, bad_words, stop_token_ids and min_tokens allow"
            )
        return allowed_W
