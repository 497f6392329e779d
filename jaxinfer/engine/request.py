"""What a caller asks for."""

import math
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real

import numpy as np

from jaxinfer.engine.limits import CacheGroup, EngineLimits, pool_capacity
from jaxinfer.errors import InvalidParameter, InvalidPrompt, PromptTooLong
from jaxinfer.guides import CompiledGuide
from jaxinfer.outputs import TokenEvent
from jaxinfer.sampling_params import SamplingParams

#: Takes the events of one step: of all requests that were submitted with this very callable.
OnEvents = Callable[[list[TokenEvent]], None]


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt and what to do with it.

    Attributes:
        request_id: unique among the requests in the engine.
        priority: higher is sooner.
        deadline: when it ends with DEADLINE if it has not ended before, on the engine's clock, in
            seconds; None and infinity are never.
        cache_salt: only requests with the same salt share cached prefixes.
        guide: ``params.structured_outputs``, compiled; None: ``Engine.submit`` does it.
        bypass_prefix_cache: neither reads from the prefix cache nor leaves anything in it.
    """

    request_id: str
    prompt_token_ids: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    priority: int = 0
    deadline: float | None = None
    cache_salt: str = ""
    bypass_prefix_cache: bool = False
    guide: CompiledGuide | None = None


def verify_prompt(prompt_token_ids: Sequence[int], vocab_size: int) -> None:
    """Checks each token id of a prompt.

    Raises:
        InvalidPrompt: the prompt is empty, or holds something that is no token id.
    """
    if len(prompt_token_ids) == 0:
        raise InvalidPrompt("the prompt is empty: give at least one token")
    if _are_token_ids(prompt_token_ids, vocab_size):
        return
    for position, token in enumerate(prompt_token_ids):
        is_int = isinstance(token, Integral) and not isinstance(token, bool)
        if not is_int or not 0 <= token < vocab_size:
            raise InvalidPrompt(
                f"prompt_token_ids[{position}] = {token!r} is not allowed: "
                f"it must be an integer from 0 to {vocab_size - 1}"
            )


def _are_token_ids(values: Sequence[int], vocab_size: int) -> bool:
    """All at once, for prompts are long; says no to some that are fine one by one."""
    try:
        ids = np.asarray(values)
    except ValueError:
        return False
    return ids.ndim == 1 and ids.dtype.kind in "iu" and 0 <= ids.min() <= ids.max() < vocab_size


def with_verified_schedule(request: Request) -> Request:
    """The request with ``priority`` an int, and ``deadline`` a finite float or None.

    Raises:
        InvalidParameter: the priority is no integer, or the deadline no number.
    """
    priority, deadline = request.priority, request.deadline
    if not isinstance(priority, Integral) or isinstance(priority, bool):
        raise InvalidParameter(
            f"priority = {reprlib.repr(priority)} is not allowed: it must be an integer, higher is "
            "sooner; use 0 where none is meant"
        )
    # NumPy's numbers wrap around and warn where Python's do not.
    return replace(request, priority=int(priority), deadline=_finite_deadline(deadline))


def _finite_deadline(deadline: object) -> float | None:
    if deadline is None:
        return None
    seconds = math.nan
    if isinstance(deadline, Real) and not isinstance(deadline, bool):
        try:
            seconds = float(deadline)
        except OverflowError as error:  # an integer, perhaps too long to print
            raise InvalidParameter(
                "the deadline does not fit a float: it must be a finite number of seconds on the "
                "engine's clock; use None for no deadline"
            ) from error
    if seconds == math.inf:
        return None
    if not math.isfinite(seconds):
        raise InvalidParameter(
            f"deadline = {reprlib.repr(deadline)} is not allowed: it must be a finite number of "
            "seconds on the engine's clock; use None for no deadline"
        )
    return seconds


def clipped_max_tokens(
    prompt_len: int,
    max_tokens: int | None,
    limits: EngineLimits,
    groups: Sequence[CacheGroup],
) -> int:
    """How many tokens a request may generate: what it asks for, as far as the context goes.

    The last token is never written to the cache, so it needs no room there.

    Raises:
        PromptTooLong: no room for a single new token in the context or the page pool.
        InvalidParameter: it asks for more than the page pool could hold if it were alone.
    """
    context = limits.max_model_len - prompt_len
    if context < 1:
        raise PromptTooLong(
            f"the prompt has {prompt_len} tokens: at most {limits.max_model_len - 1} leave room "
            f"for a new one in the context of {limits.max_model_len}; shorten it"
        )
    capacity = pool_capacity(groups, limits.page_size)
    room = context if capacity is None else capacity + 1 - prompt_len
    if room < 1:
        raise PromptTooLong(
            f"the prompt has {prompt_len} tokens: the page pool holds {capacity}; "
            "shorten it, or give the engine more pages"
        )
    if max_tokens is None:
        return min(context, room)
    wanted = min(max_tokens, context)
    if wanted > room:
        raise InvalidParameter(
            f"a prompt of {prompt_len} tokens with max_tokens = {max_tokens} needs "
            f"{prompt_len + wanted - 1} cached tokens: the page pool holds {capacity}; "
            f"ask for at most {room}, or give the engine more pages"
        )
    return wanted
