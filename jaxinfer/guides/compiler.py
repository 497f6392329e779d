"""From a guide's text to something that texts can be matched against."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import cached_property, partial
from typing import TYPE_CHECKING

from jaxinfer.errors import (
    CapacityError,
    EngineClosed,
    InvalidParameter,
    JaxInferError,
    UnsatisfiableGuide,
)
from jaxinfer.guides.lark import lark_of, needs_trial
from jaxinfer.guides.matcher import GuideMatcher, said
from jaxinfer.guides.trial import why_unfit
from jaxinfer.guides.vocabulary import Spelled, read_vocabulary
from jaxinfer.sampling_params import RequestLimits
from jaxinfer.structured_outputs import Guide

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

#: Guides that are compiled at once, and that wait for it.
NUM_THREADS = 2
MAX_WAITING = 64
#: Compiled guides that are kept. Most take little memory, the worst some 50 MB.
NUM_KEPT = 32
#: Guides that were refused which are remembered, and for how many seconds: who asks again costs
#: nobody's time, and one that only a busy machine made late may come again.
NUM_REFUSED, REFUSED_SECONDS = 64, 60.0
#: States of a lexer, one to two kilobytes each, that the texts of a guide may make together; a text
#: that finds too many there may make as many by itself.
_MAX_LEXER_STATES = 20_000
#: Expressions made for one token of a text, while all other requests wait. Where they are long it
#: takes some hundred milliseconds.
_MAX_STEP_FUEL = 50_000


class CompiledGuide:
    """A guide that outputs can be held to. ``guide``: what it was made of."""

    def __init__(
        self,
        guide: Guide,
        matcher: "LLMatcher",
        vocab_size: int,
        unshared: "Callable[[], LLMatcher]",
    ):
        """``unshared``: makes another matcher, which shares nothing with this one."""
        self.guide = guide
        self._matcher = matcher
        self._unshared = unshared
        self._vocab_size = vocab_size
        self._lock = threading.Lock()

    def matcher(self) -> GuideMatcher:
        """For one more text, at its beginning."""
        with self._lock:
            return GuideMatcher(self._matcher.deep_copy(), self._vocab_size, self._unshared)


class GuideCompiler:
    """Compiles guides for one vocabulary, each once while it is remembered, in a few threads.

    Safe to use from several threads. What a guide may take is bounded by the library's own limits,
    and by a trial where these do not see everything.

    Attributes:
        seconds: how long anybody waits for a guide, its time in the queue included.
    """

    def __init__(
        self,
        tokenizer: Spelled,
        vocab_size: int,
        eos_token_ids: Collection[int],
        *,
        seconds: float = RequestLimits.max_guide_seconds,
        clock: Callable[[], float] = time.monotonic,
    ):
        """``vocab_size``: width of the logits. ``clock``: seconds."""
        self.seconds = seconds
        self._read_vocabulary = partial(read_vocabulary, tokenizer, vocab_size, eos_token_ids)
        self._vocab_size = vocab_size
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self._kept: OrderedDict[Guide, Future[CompiledGuide]] = OrderedDict()
        self._refused: OrderedDict[Guide, tuple[float, JaxInferError]] = OrderedDict()
        self._clock = clock
        self._num_pending = 0
        self._is_closed = False

    def submit(self, guide: Guide) -> "Future[CompiledGuide]":
        """Begins to compile a guide, unless it was, is being, or was refused a short time ago. Not
        to be cancelled: others may wait for the same.

        The future raises:
            InvalidParameter: it is none of its kind, or too complex.
            UnsatisfiableGuide: no text matches it.
            Unsupported: llguidance is not installed.

        Raises:
            CapacityError: too many wait.
            EngineClosed: after ``close``.
        """
        with self._lock:
            if self._is_closed:
                raise EngineClosed("the engine was closed: it compiles no guides")
            future = self._kept.get(guide)
            if future is not None:
                self._kept.move_to_end(guide)
                return future
            if (future := self._refusal(guide)) is not None:
                return future
            if self._num_pending >= NUM_THREADS + MAX_WAITING:
                raise CapacityError(
                    f"{self._num_pending} guides are being compiled, and no more may wait: try"
                    " again later"
                )
            future = self._pool.submit(self._compile, guide)
            self._num_pending += 1
            self._kept[guide] = future
            while len(self._kept) > NUM_KEPT:
                self._kept.popitem(last=False)
        future.add_done_callback(partial(self._done, guide))
        return future

    def compile(self, guide: Guide) -> CompiledGuide:
        """The same, and waits for it.

        Raises:
            InvalidParameter, UnsatisfiableGuide, Unsupported, CapacityError, EngineClosed: as
                ``submit``.
        """
        future = self.submit(guide)
        try:
            return future.result(self.seconds)
        except TimeoutError:
            raise late(guide, future, self.seconds) from None
        except CancelledError:
            raise EngineClosed("the engine was closed: it compiles no guides") from None

    def close(self) -> None:
        """Nothing more is compiled; what has not begun never does."""
        with self._lock:
            self._is_closed = True
        if "_pool" in self.__dict__:
            self._pool.shutdown(wait=False, cancel_futures=True)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="jaxinfer-guides")

    @cached_property
    def _vocabulary(self) -> "LLTokenizer":
        return self._read_vocabulary()

    def _compile(self, guide: Guide) -> CompiledGuide:
        with self._reading:
            vocabulary = self._vocabulary
        lark = lark_of(guide)
        if needs_trial(guide):
            reason = why_unfit(lark, self.seconds)
            if reason is not None:
                raise InvalidParameter(f"{guide} cannot be used: {said(reason)}; simplify it")
        matcher = _matcher(vocabulary, lark)
        if matcher.is_error():
            error = said(matcher.get_error())
            is_empty = "unsatisfiable" in error.lower()
            kind = UnsatisfiableGuide if is_empty else InvalidParameter
            raise kind(f"{guide} cannot be used: {error}")
        # What this finds out about the guide is copied with it.
        if not GuideMatcher(matcher, self._vocab_size).next_ids().any():
            raise UnsatisfiableGuide(
                f"{guide} cannot be used: no token of this model can begin a text that matches it"
            )
        unshared = partial(self._compile_anew, guide, vocabulary, lark)
        return CompiledGuide(guide, matcher, self._vocab_size, unshared)

    def _compile_anew(self, guide: Guide, vocabulary: "LLTokenizer", lark: str) -> "LLMatcher":
        """For a text that found too many states; those who come later find none of these."""
        with self._lock:
            self._kept.pop(guide, None)
        return _matcher(vocabulary, lark)

    def _done(self, guide: Guide, future: "Future[CompiledGuide]") -> None:
        """Only what can be used is kept, and for a while what cannot."""
        with self._lock:
            self._num_pending -= 1
            error = CancelledError() if future.cancelled() else future.exception()
            if error is not None and self._kept.get(guide) is future:
                del self._kept[guide]
            if isinstance(error, InvalidParameter | UnsatisfiableGuide):
                self._refused.pop(guide, None)
                self._refused[guide] = self._clock() + REFUSED_SECONDS, _copy(error)
                while len(self._refused) > NUM_REFUSED:
                    self._refused.popitem(last=False)

    def _refusal(self, guide: Guide) -> "Future[CompiledGuide] | None":
        """What a guide was refused with a short time ago, if it was."""
        until, error = self._refused.get(guide, (0.0, None))
        if error is None or until <= self._clock():
            return None
        future: Future[CompiledGuide] = Future()
        future.set_exception(_copy(error))
        return future


def _copy(error: JaxInferError) -> JaxInferError:
    """The same without the frames of those who raised it, which an exception keeps."""
    return type(error)(str(error))


def late(guide: Guide, future: "Future[CompiledGuide]", seconds: float) -> JaxInferError:
    """Why nobody waits any longer than so many seconds."""
    if future.running():
        return InvalidParameter(
            f"{guide} cannot be used: it is not compiled within {seconds:g} s; simplify it"
        )
    return CapacityError(
        f"other guides are being compiled, and after {seconds:g} s this one's turn has not"
        " come: try again later"
    )


def _matcher(vocabulary: "LLTokenizer", lark: str) -> "LLMatcher":
    from llguidance import LLMatcher, LLParserLimits

    limits = LLParserLimits(
        max_lexer_states=_MAX_LEXER_STATES, step_lexer_fuel=_MAX_STEP_FUEL, verbose_errors=False
    )
    return LLMatcher(vocabulary, lark, log_level=0, limits=limits)
