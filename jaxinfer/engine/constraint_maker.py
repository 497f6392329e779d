"""From what a request asks for to the constraints of its samples."""

from collections.abc import Collection
from functools import cached_property

from jaxinfer.engine.constraint import BadWordsLike, Constraint, OwnIds
from jaxinfer.engine.limits import EngineLimits
from jaxinfer.engine.request import Request
from jaxinfer.errors import InvalidParameter
from jaxinfer.guides import GuideCompiler
from jaxinfer.tokenizer import Tokenizer


class ConstraintMaker:
    """Compiles guides, and makes constraints of them and of bad words."""

    def __init__(
        self, tokenizer: Tokenizer | None, *, eos_token_ids: Collection[int], limits: EngineLimits
    ):
        self._tokenizer = tokenizer
        self._eos_token_ids, self._vocab_size = eos_token_ids, limits.vocab_size
        self._limits = limits.request

    @cached_property
    def guides(self) -> GuideCompiler:
        """Made when a guide first asks for it.

        Raises:
            InvalidParameter: there is no tokenizer.
        """
        if self._tokenizer is None:
            raise InvalidParameter("structured_outputs need a tokenizer: this engine has none")
        return GuideCompiler(
            self._tokenizer,
            self._vocab_size,
            self._eos_token_ids,
            seconds=self._limits.max_guide_seconds,
        )

    def of(self, request: Request, bad_words: BadWordsLike | None) -> list[Constraint]:
        """For each sample how its next token depends on those before; none: not at all.

        Raises:
            InvalidParameter, UnsatisfiableGuide, Unsupported, CapacityError, EngineClosed: as
                ``Engine.submit``.
        """
        params, guide = request.params, request.guide
        if guide is None and params.structured_outputs is not None:
            guide = self.guides.compile(self._limits.guide_of(params.structured_outputs))
        if guide is None and (bad_words is None or not bad_words.needs_history):
            return []
        own = OwnIds(
            params, bad_words, eos_token_ids=self._eos_token_ids, vocab_size=self._vocab_size
        )
        if guide is not None and not own.are_all:
            Constraint(own, bad_words, guide).allowed(())  # raises what would come too late
        return [Constraint(own, bad_words, guide) for _ in range(params.n)]

    def close(self) -> None:
        """Ends what is being compiled."""
        if "guides" in self.__dict__:
            self.guides.close()
