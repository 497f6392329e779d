"""How a request wants its tokens chosen: vLLM's names and defaults, checked before any work."""

import math
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import NoReturn, TypeGuard

from jaxinfer.errors import InvalidParameter
from jaxinfer.structured_outputs import (
    MAX_GUIDE_BYTES,
    MAX_SCHEMA_NESTING,
    MOST_GUIDE_BYTES,
    MOST_SCHEMA_NESTING,
    Guide,
    StructuredOutputsParams,
)

#: What the wire can carry: a signed or an unsigned 64-bit integer.
_SEEDS = range(-(2**63), 2**64)

#: Of the host's memory: one position's log-probabilities, and each token's in it with its text.
_POSITION_BYTES = 256
_LOGPROB_BYTES = 320


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """What one request may ask for at most; bounded before anything is allocated for it.

    ``max_logprobs`` and ``max_token_ids`` can only be lowered: slots have room for so many.
    ``max_token_ids`` bounds stop ids, allowed ids and biased ids, each by itself.
    ``max_prompt_logprobs_bytes`` bounds what the host keeps for ``prompt_logprobs``.
    ``max_prompts`` are of one body of the OpenAI API. ``max_guide_bytes`` and
    ``max_schema_nesting`` bound the text of structured outputs, ``max_guide_seconds`` the time that
    it is waited for to be compiled. ``max_template_seconds`` (of processor time) and
    ``max_template_characters`` bound the rendering of a conversation.
    """

    max_n: int = 128
    max_stop_strings: int = 16
    max_stop_bytes: int = 256
    max_bad_words: int = 256
    max_token_ids: int = 4096
    max_logprobs: int = 20
    max_prompt_logprobs_bytes: int = 2**28
    max_prompts: int = 256
    max_guide_bytes: int = MAX_GUIDE_BYTES
    max_schema_nesting: int = MAX_SCHEMA_NESTING
    max_guide_seconds: float = 5.0
    max_template_seconds: float = 2.0
    max_template_characters: int = 16 * 2**20

    def __post_init__(self) -> None:
        """Raises:
        InvalidParameter: names the value, what is allowed, and the fix.
        """
        defaults = type(self)
        for name, least, most in (
            ("max_n", 1, 2**16),
            ("max_stop_strings", 0, 2**16),
            ("max_stop_bytes", 1, 2**20),
            ("max_bad_words", 0, 2**16),
            ("max_token_ids", 0, defaults.max_token_ids),
            ("max_logprobs", 0, defaults.max_logprobs),
            ("max_prompt_logprobs_bytes", 0, 2**40),
            ("max_prompts", 1, 2**16),
            ("max_guide_bytes", 1, MOST_GUIDE_BYTES),
            ("max_schema_nesting", 1, MOST_SCHEMA_NESTING),
            ("max_template_characters", 1, 2**30),
        ):
            fix = f"leave it out for {getattr(defaults, name)}"
            _verify_int(name, getattr(self, name), least, most, fix)
        for name in ("max_guide_seconds", "max_template_seconds"):
            fix = f"leave it out for {getattr(defaults, name)}"
            value = getattr(self, name)
            _verify_float(name, value, "from 0.01 to 600", lambda x: 0.01 <= x <= 600, fix)

    def guide_of(self, wanted: StructuredOutputsParams) -> Guide:
        """What is to be compiled.

        Raises:
            InvalidParameter: as ``StructuredOutputsParams.guide_within``.
        """
        return wanted.guide_within(
            max_bytes=self.max_guide_bytes, max_nesting=self.max_schema_nesting
        )


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """One request's sampling parameters.

    Making one never fails; ``verify`` refuses what is wrong, where the model is known.

    Attributes:
        n: Samples of each prompt.
        temperature: 0 is greedy.
        top_p: The least probable tokens beyond this mass are dropped; in (0, 1], 1 is off.
        top_k: Only the k most probable tokens are kept; 0 and -1 are off.
        min_p: Tokens below this fraction of the best token's probability are dropped; 0 is off.
        presence_penalty: Subtracted from the logit of each generated token; in [-2, 2].
        frequency_penalty: The same, times how often it was generated; in [-2, 2].
        repetition_penalty: Makes tokens of the prompt and the output less likely above 1, more
            likely below (arXiv 1909.05858).
        max_tokens: New tokens at most; None is until the context is full.
        min_tokens: New tokens before a token may end the sequence.
        stop: Strings that end the output; one string, or several.
        stop_token_ids: Tokens that end the output, besides the model's own.
        ignore_eos: The model's own end-of-sequence tokens are tokens like others.
        include_stop_str_in_output: The stop string stays at the end of the text.
        seed: Makes the samples repeatable; None takes one from the engine.
        logprobs: Alternatives with log-probabilities beside each token; None is none at all.
        prompt_logprobs: The same for each token of the prompt.
        logit_bias: Added to the logits of these token ids; in [-100, 100].
        allowed_token_ids: Only these may be sampled.
        bad_words: Words that the output must not contain, in either of two spellings: the tokens
            of the word with a leading space, and without one. The same text in other tokens, as
            in a longer word, is not seen. A word of several tokens yields where it would leave
            no token that may be sampled.
        structured_outputs: What the text of each output must match, and ends with.
        skip_special_tokens: Special tokens leave no trace in the text.
        detokenize: Turn tokens into text at all.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: str | Sequence[str] | None = ()
    stop_token_ids: Sequence[int] | None = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    seed: int | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: Mapping[int, float] | None = None
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] | None = ()
    structured_outputs: StructuredOutputsParams | None = None
    skip_special_tokens: bool = True
    detokenize: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name in ("stop", "stop_token_ids", "bad_words"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, ())

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` as a tuple, whichever way it was given."""
        return tuple(self.stop or ())

    def verify(
        self, *, vocab_size: int, prompt_len: int = 0, limits: RequestLimits | None = None
    ) -> None:
        """Checks every value. ``vocab_size``: width of the logits; ids must be below it.

        ``prompt_len``: tokens of the prompt, 0 while it is not known.

        Raises:
            InvalidParameter: names the value, what is allowed, and the fix.
        """
        limits = limits or RequestLimits()
        self._verify_counts(limits)
        self._verify_prompt_logprobs(prompt_len, limits.max_prompt_logprobs_bytes)
        self._verify_floats()
        self._verify_flags()
        self._verify_texts(limits)
        self._verify_ids(vocab_size, limits.max_token_ids)
        self._verify_structured_outputs(limits)

    def _verify_structured_outputs(self, limits: RequestLimits) -> None:
        wanted = self.structured_outputs
        if wanted is None:
            return
        if not isinstance(wanted, StructuredOutputsParams):
            fix = "give it StructuredOutputsParams(json=..., regex=..., choice=... or grammar=...)"
            _refuse("structured_outputs", wanted, "None or StructuredOutputsParams", fix)
        limits.guide_of(wanted)

    def _verify_counts(self, limits: RequestLimits) -> None:
        _verify_int("n", self.n, 1, limits.max_n)
        _verify_int("top_k", self.top_k, -1, None, "use 0 or -1 to turn it off")
        _verify_int("min_tokens", self.min_tokens, 0, None)
        if self.max_tokens is not None:
            fix = "use None to generate until the context is full"
            _verify_int("max_tokens", self.max_tokens, 1, None, fix)
            if self.min_tokens > self.max_tokens:
                _refuse("min_tokens", self.min_tokens, f"at most max_tokens = {self.max_tokens}")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None:
                _verify_int(name, value, 0, limits.max_logprobs, "use None for none at all")
        if self.seed is not None:
            _verify_int("seed", self.seed, _SEEDS.start, _SEEDS.stop - 1)

    def _verify_prompt_logprobs(self, prompt_len: int, most: int) -> None:
        if self.prompt_logprobs is None or not prompt_len:
            return
        # The token itself, and the alternatives beside it.
        nbytes = _POSITION_BYTES + _LOGPROB_BYTES * (1 + self.prompt_logprobs)
        if prompt_len * nbytes <= most:
            return
        fewer = (most // prompt_len - _POSITION_BYTES) // _LOGPROB_BYTES - 1
        advice = f"ask for at most {fewer}, or " if fewer >= 0 else ""
        raise InvalidParameter(
            f"prompt_logprobs = {self.prompt_logprobs} of {prompt_len} prompt tokens take about"
            f" {prompt_len * nbytes:,} bytes: at most {most:,} are allowed; {advice}shorten the"
            f" prompt to {most // nbytes} tokens"
        )

    def _verify_floats(self) -> None:
        off = "use 1 to turn it off"
        _verify_float("temperature", self.temperature, "of at least 0", lambda x: x >= 0)
        _verify_float("top_p", self.top_p, "above 0, at most 1", lambda x: 0 < x <= 1, off)
        _verify_float("min_p", self.min_p, "from 0 to 1", lambda x: 0 <= x <= 1)
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _verify_float(name, value, "from -2 to 2", lambda x: abs(x) <= 2)
        _verify_float(
            "repetition_penalty", self.repetition_penalty, "above 0", lambda x: x > 0, off
        )

    def _verify_flags(self) -> None:
        for name in (
            "ignore_eos",
            "include_stop_str_in_output",
            "skip_special_tokens",
            "detokenize",
        ):
            if not isinstance(getattr(self, name), bool):
                _refuse(name, getattr(self, name), "True or False")

    def _verify_texts(self, limits: RequestLimits) -> None:
        for name, most in (("stop", limits.max_stop_strings), ("bad_words", limits.max_bad_words)):
            for text in _verified_collection(name, getattr(self, name), "strings", most):
                _verify_text(name, text, limits.max_stop_bytes)
        if self.stop and not self.detokenize:
            _refuse("stop", self.stop, "empty when detokenize=False", "use stop_token_ids")

    def _verify_ids(self, vocab_size: int, most: int) -> None:
        _verify_ids("stop_token_ids", self.stop_token_ids, vocab_size, most)
        if self.allowed_token_ids is not None:
            _verify_ids("allowed_token_ids", self.allowed_token_ids, vocab_size, most)
            if len(self.allowed_token_ids) == 0:
                fix = "use None to allow every token"
                _refuse("allowed_token_ids", self.allowed_token_ids, "at least one id", fix)
        if self.logit_bias is not None:
            if not isinstance(self.logit_bias, Mapping):
                _refuse("logit_bias", self.logit_bias, "a dict of token id to float")
            _verify_ids("logit_bias", self.logit_bias, vocab_size, most)
            for token, bias in self.logit_bias.items():
                name = f"logit_bias[{token}]"
                _verify_float(name, bias, "from -100 to 100", lambda x: abs(x) <= 100)


def _refuse(name: str, value: object, allowed: str, fix: str | None = None) -> NoReturn:
    advice = f"; {fix}" if fix else ""
    raise InvalidParameter(f"{name} = {_shown(value)} is not allowed: it must be {allowed}{advice}")


def _shown(value: object) -> str:
    """A short repr, of hostile values too: long lists, and integers too long to print."""
    try:
        return reprlib.repr(value)
    except ValueError:
        return f"({type(value).__name__} too long to show)"


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _verify_int(
    name: str, value: object, least: int, most: int | None, fix: str | None = None
) -> None:
    allowed = f"an integer of at least {least}"
    if most is not None:
        allowed = f"an integer between {least} and {most}"
    if not _is_int(value) or value < least or (most is not None and value > most):
        _refuse(name, value, allowed, fix)


def _verify_float(
    name: str,
    value: object,
    allowed: str,
    is_allowed: Callable[[float], bool],
    fix: str | None = None,
) -> None:
    """NaN passes ``<`` and ``>`` alike, so finiteness is asked for before the range."""
    number = _as_float(value)
    if not math.isfinite(number) or not is_allowed(number):
        _refuse(name, value, f"a finite number {allowed}", fix)


def _as_float(value: object) -> float:
    """NaN for what is no number, infinity for what does not fit."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _verified_collection(name: str, value: object, of: str, most: int) -> Collection:
    """The value itself; its length is asked for before anybody walks through it."""
    if isinstance(value, str | bytes) or not isinstance(value, Collection):
        _refuse(name, value, f"a list of {of}")
    if len(value) > most:
        raise InvalidParameter(f"{name} holds {len(value)} {of}: at most {most} are allowed")
    return value


def _verify_text(name: str, text: object, most_bytes: int) -> None:
    if not isinstance(text, str):
        _refuse(name, text, "made of strings")
    if not text:
        _refuse(name, text, "made of strings that are not empty", "leave empty ones out")
    if len(text) > most_bytes or len(text.encode(errors="surrogatepass")) > most_bytes:
        raise InvalidParameter(
            f"{name} holds {_shown(text)}, {len(text)} characters long: "
            f"at most {most_bytes} bytes each are allowed"
        )


def _verify_ids(name: str, ids: object, vocab_size: int, most: int) -> None:
    for token in _verified_collection(name, ids, "token ids", most):
        if not _is_int(token) or not 0 <= token < vocab_size:
            allowed = f"an integer from 0 to {vocab_size - 1}"
            _refuse(f"a token id in {name}", token, allowed)
