"""What clients get: outputs under the names of ``LLM.generate``, and facts about a server."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from jaxinfer.outputs import CompletionOutput, RequestMetrics, RequestOutput


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens. ``cached_tokens``: of the prompt, those that the prefix cache held."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, kw_only=True)
class Output(CompletionOutput):
    """One of a request's n outputs.

    Attributes:
        usage: None where it has not ended.
        timing: in seconds since the Unix epoch, by the server's clock.
    """

    usage: Usage | None = None
    timing: RequestMetrics | None = None


@dataclass(frozen=True, kw_only=True)
class Generation(RequestOutput):
    """A request and its outputs.

    Attributes:
        prompt, prompt_token_ids: as they were given; of a conversation, neither.
        num_prompt_tokens: as the server counted.
        model: which answered.
    """

    outputs: tuple[Output, ...]
    model: str
    num_prompt_tokens: int

    @property
    def text(self) -> str:
        """Of the first output."""
        return self.outputs[0].text

    @property
    def usage(self) -> Usage:
        """Of all outputs, the prompt counted once."""
        return Usage(
            prompt_tokens=self.num_prompt_tokens,
            completion_tokens=sum(
                output.usage.completion_tokens if output.usage else len(output.token_ids)
                for output in self.outputs
            ),
            cached_tokens=self.num_cached_tokens,
        )


@dataclass(frozen=True, kw_only=True)
class Score:
    """The log-probabilities (base e) of tokens, each given all before it.

    ``is_greedy``: each token is the most likely one, so greedy decoding would write this text.
    """

    token_ids: tuple[int, ...]
    token_logprobs: tuple[float, ...]
    is_greedy: bool
    usage: Usage

    @property
    def logprob(self) -> float:
        """Of all scored tokens together."""
        return math.fsum(self.token_logprobs)

    @property
    def perplexity(self) -> float:
        """``exp`` of the mean negative log-probability of a token."""
        return math.exp(-self.logprob / len(self.token_logprobs))


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What is served. ``vocab_size``: width of the logits."""

    model: str
    architecture: str
    max_model_len: int
    vocab_size: int
    dtype: str
    kv_cache_dtype: str
    eos_token_ids: tuple[int, ...]
    has_tokenizer: bool
    has_chat_template: bool
    weight_bytes: int


@dataclass(frozen=True, kw_only=True)
class ServerInfo:
    """What serves it. ``started``: nanoseconds since the Unix epoch. The queue's bounds are None
    where it has none."""

    version: str
    jax_version: str
    platform: str
    num_devices: int
    started: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_waiting_requests: int | None
    max_waiting_tokens: int | None
    startup_seconds: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Load:
    """How busy a server is: sequences in slots and in the queue, requests that have not ended, and
    the share of the KV cache's pages in use."""

    num_running: int
    num_waiting: int
    num_unfinished: int
    kv_cache_usage: float
    num_slots: int
    is_draining: bool
