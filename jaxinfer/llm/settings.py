"""The settings of an ``LLM``, checked before anything is opened for them."""

from collections.abc import Sequence
from typing import NoReturn

from jaxinfer.errors import InvalidParameter

#: Sequences, tokens and pages are counted in 32-bit integers on the device.
_MOST = 2**31 - 1
#: What jax makes a random key of.
_SEEDS = range(-(2**63), 2**63)


def verify_settings(
    *,
    max_model_len: int | None,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    page_size: int,
    num_pages: int | None,
    memory_utilization: float,
    seed: int,
    prefill_tokens: Sequence[int] | None,
    decode_steps: Sequence[int],
    max_waiting_requests: int | None = None,
    max_waiting_tokens: int | None = None,
) -> None:
    """Types and ranges; what depends on the model or on another setting is for the engine to say.

    Raises:
        InvalidParameter: names the value, what is allowed, and the fix.
    """
    if max_model_len is not None:
        fix = "None takes what the model allows"
        _verify_int("max_model_len", max_model_len, 2, _MOST, fix)
    _verify_int("max_num_seqs", max_num_seqs, 1, _MOST, "leave it out for 32")
    _verify_int("max_num_batched_tokens", max_num_batched_tokens, 1, _MOST, "leave it out for 512")
    if isinstance(page_size, bool) or not isinstance(page_size, int):
        _refuse("page_size", page_size, "an int", "leave it out for 64")
    if num_pages is not None:
        _verify_int("num_pages", num_pages, 2, _MOST, "None takes what the memory holds")
    is_number = isinstance(memory_utilization, int | float)
    if isinstance(memory_utilization, bool) or not is_number or not 0 < memory_utilization <= 1:
        allowed = "a number above 0 and at most 1"
        _refuse("memory_utilization", memory_utilization, allowed, "leave it out for 0.9")
    _verify_int("seed", seed, _SEEDS.start, _SEEDS.stop - 1, "leave it out for 0")
    if prefill_tokens is not None:
        _verify_ints("prefill_tokens", prefill_tokens, "None chooses some")
    waiting = {"requests": max_waiting_requests, "tokens": max_waiting_tokens}
    for kind, value in waiting.items():
        if value is not None:
            _verify_int(f"max_waiting_{kind}", value, 1, _MOST, "None is an endless queue")
    _verify_ints("decode_steps", decode_steps, "leave it out for (1,)")


def _verify_int(name: str, value: object, least: int, most: int, fix: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        _refuse(name, value, f"an int from {least} to {most}", fix)


def _verify_ints(name: str, values: object, fix: str) -> None:
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        _refuse(name, values, "a list or tuple of ints", fix)
    for value in values:
        _verify_int(f"a value in {name}", value, 1, _MOST, fix)


def _refuse(name: str, value: object, allowed: str, fix: str) -> NoReturn:
    try:
        shown = f"{value!r:.100}"
    except ValueError:  # Python prints no integer of more than some thousand digits
        shown = f"({type(value).__name__} too long to show)"
    raise InvalidParameter(f"{name} = {shown} is not allowed: it must be {allowed}; {fix}")
