"""The model that is served, and how texts become its tokens."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import jaxinfer
from jaxinfer.engine.engine import Engine
from jaxinfer.errors import InvalidPrompt
from jaxinfer.sampling_params import RequestLimits
from jaxinfer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from jaxinfer.llm import LLM

#: Characters of a text that is never too long to be encoded.
_SHORT_TEXT = 2**16

#: ``{"role": ..., "content": ...}``.
Message = Mapping[str, Any]


class ModelControl(Protocol):
    """What an ``LLM`` can do besides serving; each call takes its time."""

    def update_weights(self, path: str | Path, *, timeout: float | None = None) -> None: ...

    def sleep(self, level: int = 1, *, timeout: float | None = None) -> None: ...

    def wake_up(self) -> None: ...

    def start_profile(self, directory: str | Path) -> None: ...

    def stop_profile(self) -> Path: ...


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """An engine that runs, and what its clients are told about it.

    Attributes:
        name: what clients call it.
        tokenizer: None: prompts are token ids, and texts of outputs are empty.
        facts, server_facts: by the names of the fields of GetModelInfoResponse and
            GetServerInfoResponse.
        memory_budget: bytes on a device by use.
        control: what operators may do with it; None where nothing can be done.
        num_compiles: programs compiled since it was ready; there should be none.
    """

    name: str
    engine: Engine
    tokenizer: Tokenizer | None
    max_model_len: int
    has_prompt_logprobs: bool = True
    facts: Mapping[str, Any] = field(default_factory=dict)
    server_facts: Mapping[str, Any] = field(default_factory=dict)
    memory_budget: Mapping[str, int] = field(default_factory=dict)
    num_compiles: Callable[[], int] = lambda: 0
    control: ModelControl | None = None

    @classmethod
    def of(cls, llm: "LLM", name: str) -> Self:
        """What an LLM has, for clients that call it ``name``."""
        tokenizer = llm.tokenizer
        return cls(
            name=name,
            engine=llm.engine,
            tokenizer=tokenizer,
            max_model_len=llm.max_model_len,
            has_prompt_logprobs=llm.has_prompt_logprobs,
            facts={
                "architecture": llm.config.model_type,
                "dtype": llm.dtype,
                "kv_cache_dtype": llm.kv_cache_dtype,
                "weight_bytes": llm.weight_bytes,
                "eos_token_ids": sorted(
                    {*llm.config.eos_token_ids, *(tokenizer.eos_token_ids if tokenizer else ())}
                ),
                "has_chat_template": tokenizer is not None and bool(tokenizer.chat_template),
            },
            server_facts={
                "version": jaxinfer.__version__,
                "jax_version": version("jax"),
                "platform": llm.platform,
                "num_devices": llm.mesh.size,
                "startup_seconds": llm.startup_seconds,
            },
            memory_budget=llm.budget.by_use,
            num_compiles=lambda: llm.num_compiles,
            control=llm,
        )

    @cached_property
    def max_text(self) -> int:
        """Characters that a prompt can have at most: tokens have bytes, and no text has more
        characters than bytes. Short texts are not refused by it, so that their tokens are told.
        """
        if self.tokenizer is None:
            return _SHORT_TEXT
        token_ids = range(self.tokenizer.vocab_size)
        longest = max(len(self.tokenizer.token_bytes(token)) for token in token_ids)
        return max(_SHORT_TEXT, self.max_model_len * longest)

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self.engine.runner.limits.vocab_size

    @property
    def request_limits(self) -> RequestLimits:
        """What one request may ask for at most."""
        return self.engine.runner.limits.request

    def require_tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            InvalidPrompt: there is none.
        """
        if self.tokenizer is None:
            raise InvalidPrompt(f"{self.name!r} is served without a tokenizer: give token ids")
        return self.tokenizer

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The tokens of a prompt.

        Raises:
            InvalidPrompt: no tokenizer, or no text.
        """
        return self.require_tokenizer().encode(text, add_special_tokens=add_special_tokens)

    def encode_chat(self, messages: Sequence[Message], **template: Any) -> list[int]:
        """The tokens of a conversation that the assistant is to go on with.

        Raises:
            InvalidPrompt: no tokenizer.
            ChatTemplateError: no chat template, or one that fails on these messages.
        """
        tokenizer = self.require_tokenizer()
        text = tokenizer.apply_chat_template(
            messages, template_limits=self.request_limits, **template
        )
        # The template has put the special tokens where they belong.
        return tokenizer.encode(text, add_special_tokens=False)
