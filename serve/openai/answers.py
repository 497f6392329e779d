"""An ask's answer: whole, or chunk by chunk."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from jaxinfer.outputs import FinishReason, TokenEvent
from serve.door import PATIENT
from serve.frontend import Frontend
from serve.openai.ask import OpenAiAsk
from serve.openai.forms import Choice, form_of
from serve.openai.generation import Generation, accepted
from serve.openai.logprobs import LogprobForms, prompt_logprobs
from serve.openai.reading import CHAT


async def answer(frontend: Frontend, ask: OpenAiAsk) -> dict[str, Any]:
    """The body of an answer that is not streamed.

    Raises:
        DeadlinePassed, Aborted, Draining, StepFailed: it ended too soon.
        JaxInferError: as ``Frontend.generate``.
    """
    async with accepted(frontend, ask) as generation:
        transcript = Transcript(frontend, ask, generation)
        async for batch in generation.batches(PATIENT):
            for index, event in batch:
                if (failure := generation.failure(event)) is not None:
                    raise failure
                transcript.note(index, event)
        return transcript.whole()


async def stream(frontend: Frontend, ask: OpenAiAsk) -> AsyncGenerator[dict[str, Any], None]:
    """The chunks of an answer, as they come; the same exceptions as ``answer``.

    Whoever leaves early closes it (``contextlib.aclosing``), which ends the requests.
    """
    async with aclosing(stream_batches(frontend, ask)) as batches:
        async for chunks in batches:
            for chunk in chunks:
                yield chunk


async def stream_batches(
    frontend: Frontend, ask: OpenAiAsk
) -> AsyncGenerator[list[dict[str, Any]], None]:
    """The same, with what comes together in one list; an empty one comes first, when the request
    was accepted."""
    async with accepted(frontend, ask) as generation:
        yield []
        transcript = Transcript(frontend, ask, generation)
        async for batch in generation.batches():
            chunks: list[dict[str, Any]] = []
            for index, event in batch:
                if (failure := generation.failure(event)) is not None:
                    if chunks:
                        yield chunks
                    raise failure
                if (chunk := transcript.chunk(index, event)) is not None:
                    chunks.append(chunk)
            if chunks:
                yield chunks
        if ask.include_usage:
            yield [transcript.usage_chunk()]


class Transcript:
    """Counts tokens, and writes down what events say."""

    def __init__(self, frontend: Frontend, ask: OpenAiAsk, generation: Generation):
        model = frontend.model
        self._ask, self._generation = ask, generation
        self._form = form_of(
            ask,
            LogprobForms(model.tokenizer, num_top=ask.num_logprobs or 0, as_ids=ask.tokens_as_ids),
        )
        self._n = ask.n
        self._prompts = generation.prompts
        self._choices = [Choice(index) for index in range(len(self._prompts) * self._n)]
        for choice in self._choices:
            choice.prompt_token_ids = self._prompts[choice.index // self._n]
        self._num_prompt_tokens = sum(map(len, self._prompts))
        self._num_tokens = 0
        self._num_cached = [0] * len(self._prompts)
        self._head = {"id": ask.id, "object": "", "created": ask.created, "model": model.name}

    def note(self, prompt_index: int, event: TokenEvent) -> None:
        """Adds an event to the answer."""
        event = self._shown(event)
        choice = self._take(prompt_index, event)
        if choice.is_fresh and self._ask.echo:
            choice.text.append(self._generation.echoes[prompt_index])
        if self._ask.num_logprobs is not None:
            choice.logprobs.append(self._form.logprobs(choice, event))
        choice.text.append(event.text)
        choice.token_ids += event.token_ids
        choice.is_fresh = False

    def chunk(self, prompt_index: int, event: TokenEvent) -> dict[str, Any] | None:
        """An event as a chunk; None where a client would learn nothing from it."""
        ask = self._ask
        event = self._shown(event)
        choice = self._take(prompt_index, event)
        text, logprobs = event.text, None
        if ask.num_logprobs is not None:
            logprobs = self._form.logprobs(choice, event)
        if choice.is_fresh and ask.echo:
            text = self._generation.echoes[prompt_index] + text
        has_news = text or logprobs is not None or choice.is_fresh or ask.shows_token_ids
        if not has_news and event.finish_reason is None and not ask.continuous_usage:
            return None
        part = self._form.chunk(choice, text, logprobs)
        part["finish_reason"] = event.finish_reason
        if event.finish_reason is not None:
            part["stop_reason"] = event.stop_reason
        if ask.shows_token_ids:
            part["token_ids"] = list(event.token_ids)
            if choice.is_fresh:
                part["prompt_token_ids"] = list(choice.prompt_token_ids)
        choice.is_fresh = False
        chunk = {
            "id": ask.id,
            "object": self._form.chunk_name,
            "created": ask.created,
            "model": self._head["model"],
            "system_fingerprint": None,
            "choices": [part],
        }
        if ask.continuous_usage:
            chunk["usage"] = self._usage()
        elif ask.include_usage:
            chunk["usage"] = None
        return chunk

    def usage_chunk(self) -> dict[str, Any]:
        """The last one, when all choices have ended."""
        head = self._head | {"object": self._form.chunk_name, "system_fingerprint": None}
        return head | {"choices": [], "usage": self._usage()}

    def whole(self) -> dict[str, Any]:
        """All that was noted."""
        ask = self._ask
        whole: dict[str, Any] = self._head | {
            "object": self._form.object_name,
            "system_fingerprint": None,
            "choices": [self._whole_choice(choice) for choice in self._choices],
            "usage": self._usage(),
        }
        if ask.url == CHAT:  # one prompt, so the answer has what concerns it
            first = self._choices[0]
            if ask.shows_token_ids:
                whole["prompt_token_ids"] = list(first.prompt_token_ids)
            if ask.shows_prompt_logprobs and first.prompt_logprobs is not None:
                whole["prompt_logprobs"] = prompt_logprobs(first.prompt_logprobs)
        return whole

    def _whole_choice(self, choice: Choice) -> dict[str, Any]:
        whole = self._form.whole(choice)
        whole["finish_reason"] = choice.finish_reason
        whole["stop_reason"] = choice.stop_reason
        if self._ask.shows_token_ids:
            whole["token_ids"] = choice.token_ids
        return whole

    def _take(self, prompt_index: int, event: TokenEvent) -> Choice:
        """The choice of an event, which is counted."""
        first = prompt_index * self._n
        if event.prompt_logprobs is not None:  # with output 0; the others have the same
            for choice in self._choices[first : first + self._n]:
                choice.prompt_logprobs = event.prompt_logprobs
        self._num_tokens += len(event.token_ids)
        if event.num_cached_tokens > self._num_cached[prompt_index]:
            self._num_cached[prompt_index] = event.num_cached_tokens
        choice = self._choices[first + event.index]
        choice.finish_reason, choice.stop_reason = event.finish_reason, event.stop_reason
        return choice

    def _shown(self, event: TokenEvent) -> TokenEvent:
        """The event, or nothing of its tokens."""
        if self._ask.has_output:
            return event
        is_last = event.finish_reason is not None
        return TokenEvent(
            request_id=event.request_id,
            index=event.index,
            num_cached_tokens=event.num_cached_tokens,
            prompt_logprobs=event.prompt_logprobs,
            finish_reason=FinishReason.LENGTH if is_last else None,
        )

    def _usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self._num_prompt_tokens,
            "completion_tokens": self._num_tokens,
            "total_tokens": self._num_prompt_tokens + self._num_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(self._num_cached)},
        }
