"""What clients may ask for, whichever protocol they speak."""

import asyncio
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from jaxinfer.engine.request import Request, verify_prompt
from jaxinfer.errors import (
    CapacityError,
    DeadlinePassed,
    EngineClosed,
    InvalidPrompt,
    Unsupported,
)
from jaxinfer.guides import CompiledGuide
from jaxinfer.guides.compiler import late
from jaxinfer.outputs import FinishReason
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.structured_outputs import StructuredOutputsParams
from serve.bounds import (
    MAX_LIST,
    MAX_TOKENIZED,
    require_room_for_ids,
    require_room_for_text,
    require_short,
)
from serve.door import Door, EventStream
from serve.errors import Draining, NotFound
from serve.model import Message, ServedModel
from serve.observer import Observer

T = TypeVar("T")

#: Long texts and conversations that are encoded or wait for it.
MAX_ASIDE = 1024
#: Characters from which on a text is encoded beside the event loop, not in it.
LONG_TEXT = 4096


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A prompt that is a list of messages, oldest first. ``template``: what else the chat template
    is to see."""

    messages: Sequence[Message]
    template: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One prompt and what to do with it, as it came over a wire.

    Attributes:
        request_id: empty: the server makes one.
        prompt: a text, token ids, or a conversation.
        model: empty, or the name of the model that is served.
        timeout: seconds from now.
        add_special_tokens: a text is encoded as the model wants its texts to begin; the template
            of a conversation sees to that itself.
    """

    prompt: str | Sequence[int] | Conversation
    params: SamplingParams = field(default_factory=SamplingParams)
    request_id: str = ""
    model: str = ""
    priority: int = 0
    timeout: float | None = None
    cache_salt: str = ""
    bypass_prefix_cache: bool = False
    add_special_tokens: bool = True


class Frontend:
    """The one way from a protocol to the engine.

    Attributes:
        model: what is served.
        is_draining: takes no new requests.
        max_text: characters of the longest prompt.
    """

    def __init__(
        self, model: ServedModel, *, max_pending_tokens: int, observers: Sequence[Observer] = ()
    ):
        self.model = model
        self.is_draining = False
        self.max_text = model.max_text
        self._num_aside = 0
        self._observers = observers
        self._door = Door(model.engine, max_pending_tokens=max_pending_tokens)

    @property
    def num_unfinished(self) -> int:
        """Requests that have not ended."""
        return len(self._door)

    async def generate(
        self, ask: Ask, admit: Callable[[Request], None] = lambda request: None
    ) -> EventStream:
        """Hands a request in; whoever got its stream closes it.

        ``admit``: raises what it is refused with, now that the length of its prompt is known.

        Raises:
            NotFound: another model.
            Draining: nothing new is taken.
            DeadlinePassed: no time is left, or too little for a token beside those that are here.
            JaxInferError: as ``Engine.submit``.
        """
        arrival = time.monotonic()
        self.require_model(ask.model)
        if self.is_draining:
            raise Draining("the server is draining: ask another one")
        require_short("request_id", ask.request_id)
        require_short("cache.salt", ask.cache_salt)
        if ask.timeout is not None and ask.timeout <= 0:
            raise DeadlinePassed("the deadline has passed before the request came")
        deadline = None if ask.timeout is None else arrival + ask.timeout
        self.model.engine.require_time(deadline, ask.priority)  # before anything else
        if ask.params.prompt_logprobs is not None and not self.model.has_prompt_logprobs:
            raise Unsupported("prompt log-probabilities: this server was started without them")
        guide = await self._compile(ask.params.structured_outputs)
        token_ids = await self.encode(ask.prompt, add_special_tokens=ask.add_special_tokens)
        self.require_room_in_queue(1, len(token_ids))
        request = Request(
            request_id=ask.request_id or uuid.uuid4().hex,
            prompt_token_ids=token_ids,
            params=ask.params,
            priority=ask.priority,
            deadline=deadline,
            cache_salt=ask.cache_salt,
            bypass_prefix_cache=ask.bypass_prefix_cache,
            guide=guide,
        )
        admit(request)
        watches = [observer.begin(ask, request, arrival) for observer in self._observers]
        return self._door.submit(request, watches)

    async def _compile(self, wanted: StructuredOutputsParams | None) -> CompiledGuide | None:
        """What outputs are to match, compiled in the engine's threads for that.

        Raises:
            InvalidParameter, UnsatisfiableGuide, Unsupported, CapacityError, EngineClosed: it
                cannot be.
        """
        if wanted is None:
            return None
        limits = self.model.request_limits
        guide = limits.guide_of(wanted)
        future = self.model.engine.begin_guide(guide)
        compiling = asyncio.wrap_future(future)
        # Who has left does not want to know how it ended.
        compiling.add_done_callback(lambda done: done.cancelled() or done.exception())
        try:
            # Others may wait for the same one: nobody who goes away may cancel it.
            return await asyncio.wait_for(asyncio.shield(compiling), limits.max_guide_seconds)
        except TimeoutError:
            raise late(guide, future, limits.max_guide_seconds) from None
        except asyncio.CancelledError:
            if future.cancelled():  # not who waits for it
                raise EngineClosed("the engine was closed: it compiles no guides") from None
            raise

    async def encode(
        self,
        prompt: str | Sequence[int] | Conversation,
        *,
        add_special_tokens: bool = True,
        must_fit: bool = True,
    ) -> Sequence[int]:
        """The tokens of a prompt; long ones are made in another thread.

        ``must_fit``: what surely leaves no room in the context is refused before it is encoded;
        else a text may have ``MAX_TOKENIZED`` characters in any case.

        Raises:
            InvalidPrompt, PromptTooLong, ChatTemplateError: it cannot be encoded.
        """
        self.require_room(prompt, must_fit=must_fit)
        if isinstance(prompt, Conversation):
            # A template is a program: it may take its time.
            encode_chat = partial(self.model.encode_chat, prompt.messages, **prompt.template)
            return await self._aside(encode_chat)
        if not isinstance(prompt, str):
            return tuple(prompt)
        encode = partial(self.model.encode, prompt, add_special_tokens=add_special_tokens)
        return encode() if len(prompt) < LONG_TEXT else await self._aside(encode)

    def require_room(
        self, prompt: str | Sequence[int] | Conversation, *, must_fit: bool = True
    ) -> None:
        """Raises PromptTooLong for what is too long whatever its tokens are; see ``encode``."""
        most = self.max_text if must_fit else max(MAX_TOKENIZED, self.max_text)
        if isinstance(prompt, str):
            require_room_for_text(len(prompt), most)
        elif isinstance(prompt, Conversation):
            texts = [message.get("content") for message in prompt.messages]
            require_room_for_text(sum(len(text) for text in texts if isinstance(text, str)), most)
        else:
            require_room_for_ids(prompt, self.model.max_model_len)

    def require_room_in_queue(self, num_prompts: int, num_tokens: int) -> None:
        """Refuses what is to be taken in together, and never can be: all of it may have to wait.

        Raises:
            InvalidPrompt: more than the queue has room for when it is empty.
        """
        limits = self.model.engine.runner.limits
        for unit, number, most in (
            ("prompts", num_prompts, limits.max_waiting_requests),
            ("prompt tokens", num_tokens, limits.max_waiting_tokens),
        ):
            if most is not None and number > most:
                flag = "requests" if unit == "prompts" else "tokens"
                raise InvalidPrompt(
                    f"prompt holds {number} {unit}, and the queue here has room for {most}: send at"
                    f" most {most} in a request, or serve with --max-waiting-{flag} {number}"
                )

    async def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of tokens, made in another thread; of none it is empty.

        Raises:
            InvalidPrompt: an id outside of the vocabulary, too many, or no tokenizer.
        """
        require_room_for_ids(token_ids, max(MAX_LIST, self.model.max_model_len))
        decode = self.model.require_tokenizer().decode
        if not token_ids:  # which is no prompt, but a text
            return ""
        verify_prompt(token_ids, self.model.vocab_size)
        return await self._aside(
            partial(decode, token_ids, skip_special_tokens=skip_special_tokens)
        )

    def require_model(self, name: str) -> None:
        """Refuses a request for another model than the one that is served."""
        if name not in ("", self.model.name):
            raise NotFound(f"model {name!r} is not served here: {self.model.name!r} is")

    async def _aside(self, call: Callable[[], T]) -> T:
        """The call, in another thread.

        Raises:
            CapacityError: too many wait for one.
        """
        if self._num_aside >= MAX_ASIDE:
            raise CapacityError(
                f"{self._num_aside} texts are being encoded, at most {MAX_ASIDE} may; try again"
                " later"
            )
        self._num_aside += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(None, call)
        finally:
            self._num_aside -= 1

    def abort_all(self) -> None:
        """Ends every request."""
        self._door.abort_all()

    def end_all(self, reason: FinishReason, error: str | None = None) -> None:
        """Ends every request for its reader, when nothing more will come from the engine."""
        self._door.end_all(reason, error)

    def abort(self, request_id: str) -> None:
        """Ends a request; does nothing where it has lately ended.

        Raises:
            NotFound: nobody knows it.
        """
        if not self._door.abort(request_id):
            raise NotFound(f"request_id {request_id!r}: no request of that id is known")
