"""The keywords that both clients take: those of ``SamplingParams``, and those of a call."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

from jaxinfer.sampling_params import SamplingParams
from jaxinfer.structured_outputs import StructuredOutputsParams
from serve.client.connection import Metadata


class CallOptions(TypedDict, total=False):
    """Of every call.

    ``timeout``: seconds for it, all its attempts included; None: no end; not given: the client's.
    ``traceparent``: W3C trace context, passed on. ``metadata``: more of it.
    """

    timeout: float | None
    traceparent: str | None
    metadata: Metadata


class SamplingOptions(TypedDict, total=False):
    """The fields of ``SamplingParams``, with its meanings and defaults."""

    n: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    max_tokens: int | None
    min_tokens: int
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    ignore_eos: bool
    include_stop_str_in_output: bool
    seed: int | None
    logprobs: int | None
    prompt_logprobs: int | None
    logit_bias: Mapping[int, float] | None
    allowed_token_ids: Sequence[int] | None
    bad_words: Sequence[str] | None
    structured_outputs: StructuredOutputsParams | None
    skip_special_tokens: bool
    detokenize: bool


class RequestOptions(SamplingOptions, CallOptions, total=False):
    """Of a request for tokens.

    ``params``: sampling parameters as one object, which keywords beside it change. ``request_id``:
    not given: the client makes one. ``priority``: higher is sooner. ``cache_salt``: only requests
    with the same one share cached prefixes.
    """

    params: SamplingParams | None
    request_id: str
    model: str
    priority: int
    cache_salt: str
    bypass_prefix_cache: bool


def metadata_of(call: CallOptions, own: Metadata) -> Metadata:
    """What a call carries: the connection's own, and what it was given.

    Raises:
        TypeError: a keyword that there is not.
    """
    unknown = sorted(call.keys() - RequestOptions.__annotations__.keys())
    if unknown:
        raise TypeError(f"there is no keyword {unknown[0]!r}")
    trace = call.get("traceparent")
    given = () if trace is None else (("traceparent", trace),)
    return (*own, *given, *call.get("metadata", ()))
