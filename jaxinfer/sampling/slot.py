"""One request's sampling parameters in the form that a slot takes: arrays of fixed shapes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np

from jaxinfer.bits import all_ids, num_words, pack_ids
from jaxinfer.errors import InvalidParameter
from jaxinfer.sampling.keys import sample_key
from jaxinfer.sampling_params import RequestLimits, SamplingParams
from jaxinfer.shapes import round_up

#: Biases are added this many ids at a time, as often as the slot with the most of them needs.
BIAS_CHUNK = 128
#: Beyond these limits float32 overflows, and at them the tokens are already what they would be.
_TEMPERATURES = (1e-6, 1e6)
_REPETITION_PENALTIES = (1e-30, 1e30)
_MOST_INT32 = 2**31 - 1
_MOST_UINT16 = 2**16 - 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SlotSampling:
    """What ``admit`` uploads to one slot: NumPy arrays, fields in ``SamplingState``'s order.

    Attributes:
        temperature: 0 is greedy.
        top_k: 0 is off.
        top_p: 1 is off.
        key_2: See ``jaxinfer.sampling.keys``.
        bias_ids_B: Ids beyond the first ``num_biases`` are V, which no column has.
        is_restricted: 1 where ``allowed_W`` leaves an id out.
        stop_W: Ids that end the sequence, forbidden before ``min_tokens``.
        max_tokens: Of this sample, those of earlier stays in a slot included.
        prompt_seen_W: Ids of the prompt; kept only where the repetition penalty asks for them.
        output_counts_V: How often each id was generated.
        num_logprobs: Alternatives wanted; -1 is no log-probabilities at all.
    """

    temperature: np.ndarray
    top_k: np.ndarray
    top_p: np.ndarray
    min_p: np.ndarray
    presence: np.ndarray
    frequency: np.ndarray
    repetition: np.ndarray
    key_2: np.ndarray
    num_biases: np.ndarray
    bias_ids_B: np.ndarray
    bias_values_B: np.ndarray
    is_restricted: np.ndarray
    allowed_W: np.ndarray
    stop_W: np.ndarray
    min_tokens: np.ndarray
    max_tokens: np.ndarray
    num_generated: np.ndarray
    prompt_seen_W: np.ndarray
    output_counts_V: np.ndarray
    num_logprobs: np.ndarray

    def with_tokens(
        self, prompt: Sequence[int] | np.ndarray, generated: Sequence[int] | np.ndarray
    ) -> "SlotSampling":
        """The same parameters after this prompt and these tokens: a slot's state after preemption
        is what it was before.
        """
        vocab_size = self.output_counts_V.shape[0]
        counts_V = np.bincount(np.asarray(generated, np.int64), minlength=vocab_size)
        seen = prompt if self.repetition != 1 else ()
        return replace(
            self,
            num_generated=_int32(len(generated)),
            prompt_seen_W=pack_ids(seen, vocab_size),
            output_counts_V=np.minimum(counts_V, _MOST_UINT16).astype(np.uint16),
        )


def slot_sampling(
    params: SamplingParams,
    *,
    sample_index: int,
    vocab_size: int,
    eos_token_ids: Iterable[int],
    prompt: Sequence[int] | np.ndarray = (),
    generated: Sequence[int] | np.ndarray = (),
    max_tokens: int,
    default_seed: int = 0,
    banned_token_ids: Iterable[int] = (),
) -> SlotSampling:
    """The slot's row of sample ``sample_index`` of a request whose parameters were verified.

    ``max_tokens``: as far as the context goes. ``default_seed``: used where the request names no
    seed; the same again after preemption, another for each request. ``banned_token_ids``: never
    sampled (bad words of a single token). Touches no device.

    Raises:
        InvalidParameter: no token may be sampled at all, or none before ``min_tokens``.
    """
    blank = blank_slot_sampling(vocab_size)
    biases = params.logit_bias or {}
    stop_ids = set(params.stop_token_ids or ())
    if not params.ignore_eos:
        stop_ids.update(eos_token_ids)
    stop_W = pack_ids(stop_ids, vocab_size)
    allowed_W = _allowed(params, vocab_size, banned_token_ids, stop_W)
    # The most probable token alone is the greedy one, without the work of drawing it.
    is_greedy = params.temperature == 0 or params.top_k == 1
    row = replace(
        blank,
        temperature=_float32(0 if is_greedy else _clip(params.temperature, _TEMPERATURES)),
        top_k=_int32(params.top_k if 0 < params.top_k < vocab_size else 0),
        top_p=_float32(params.top_p),
        min_p=_float32(params.min_p),
        presence=_float32(params.presence_penalty),
        frequency=_float32(params.frequency_penalty),
        repetition=_float32(_clip(params.repetition_penalty, _REPETITION_PENALTIES)),
        key_2=sample_key(default_seed if params.seed is None else params.seed, sample_index),
        num_biases=_int32(len(biases)),
        bias_ids_B=_filled(blank.bias_ids_B, list(biases)),
        bias_values_B=_filled(blank.bias_values_B, list(biases.values())),
        is_restricted=_int32((allowed_W != all_ids(vocab_size)).any()),
        allowed_W=allowed_W,
        stop_W=stop_W,
        min_tokens=_int32(params.min_tokens),
        max_tokens=_int32(max_tokens),
        num_logprobs=_int32(-1 if params.logprobs is None else params.logprobs),
    )
    return row.with_tokens(prompt, generated)


def blank_slot_sampling(vocab_size: int) -> SlotSampling:
    """An empty slot's row, and a row's shapes and dtypes: greedy, unrestricted, endless."""
    num_ids = round_up(min(RequestLimits.max_token_ids, vocab_size), BIAS_CHUNK)
    words_W = np.zeros(num_words(vocab_size), np.uint32)
    return SlotSampling(
        temperature=_float32(0),
        top_k=_int32(0),
        top_p=_float32(1),
        min_p=_float32(0),
        presence=_float32(0),
        frequency=_float32(0),
        repetition=_float32(1),
        key_2=np.zeros(2, np.uint32),
        num_biases=_int32(0),
        bias_ids_B=np.full(num_ids, vocab_size, np.int32),
        bias_values_B=np.zeros(num_ids, np.float32),
        is_restricted=_int32(0),
        allowed_W=all_ids(vocab_size),
        stop_W=words_W,
        min_tokens=_int32(0),
        max_tokens=_int32(_MOST_INT32),
        num_generated=_int32(0),
        prompt_seen_W=words_W,
        output_counts_V=np.zeros(vocab_size, np.uint16),
        num_logprobs=_int32(-1),
    )


def _allowed(
    params: SamplingParams, vocab_size: int, banned: Iterable[int], stop_W: np.ndarray
) -> np.ndarray:
    if params.allowed_token_ids is None:
        allowed_W = all_ids(vocab_size)
    else:
        allowed_W = pack_ids(params.allowed_token_ids, vocab_size)
    allowed_W &= ~pack_ids(banned, vocab_size)
    if not allowed_W.any():
        raise InvalidParameter(
            "allowed_token_ids and bad_words leave no token to sample: allow more, or forbid less"
        )
    if params.min_tokens > 0 and not (allowed_W & ~stop_W).any():
        raise InvalidParameter(
            f"min_tokens = {params.min_tokens} is not allowed: allowed_token_ids and bad_words "
            "leave only tokens that end the sequence; use min_tokens = 0, or allow a token that "
            "does not end it"
        )
    return allowed_W


def _filled(row_B: np.ndarray, values: list) -> np.ndarray:
    """``row_B`` with ``values`` at its beginning."""
    if len(values) > len(row_B):
        raise InvalidParameter(
            f"logit_bias holds {len(values)} token ids: at most {len(row_B)} are allowed"
        )
    return np.concatenate((np.asarray(values, row_B.dtype), row_B[len(values) :]))


def _clip(value: float, limits: tuple[float, float]) -> float:
    least, most = limits
    return min(max(float(value), least), most)


def _int32(value: int | np.bool_) -> np.ndarray:
    return np.asarray(min(int(value), _MOST_INT32), np.int32)


def _float32(value: float) -> np.ndarray:
    return np.asarray(value, np.float32)
