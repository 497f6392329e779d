"""The requests of one ask, under way together."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from jaxinfer.errors import CapacityError, DeadlinePassed, InvalidPrompt
from jaxinfer.outputs import FinishReason, TokenEvent
from serve.door import EventStream
from serve.errors import Aborted, Draining
from serve.frontend import Ask, Frontend
from serve.openai.ask import OpenAiAsk

#: Events of a prompt, which is told by its number.
Batch = list[tuple[int, TokenEvent]]


class Generation:
    """All prompts of an ask, accepted.

    Attributes:
        prompts: their token ids.
        echoes: their texts; empty where the answer does not begin with them.
    """

    def __init__(self, frontend: Frontend, ask: OpenAiAsk):
        self._frontend, self._ask = frontend, ask
        self._streams: list[EventStream] = []
        self._pumps: list[asyncio.Task[None]] = []
        self.echoes: list[str] = []

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        return [tuple(stream.request.prompt_token_ids) for stream in self._streams]

    async def begin(self) -> None:
        """Hands all prompts in.

        Raises:
            InvalidPrompt: more prompts, or tokens of them, than can ever wait.
            JaxInferError: as ``Frontend.generate``; ``close`` takes back what was handed in.
        """
        self._frontend.require_room_in_queue(len(self._ask.asks), 0)
        num_tokens = 0
        for ask in self._ask.asks:
            try:
                stream = await self._frontend.generate(ask)
            except CapacityError:
                # Perhaps it has filled the queue by itself, and would do so again.
                await self._require_room(num_tokens + len(await self._encoded(ask)))
                raise
            self._streams.append(stream)
            num_tokens += len(stream.request.prompt_token_ids)
            await self._require_room(num_tokens)
        self.echoes = [await self._echo(index) for index in range(len(self._streams))]

    async def batches(self, patience: int | None = None) -> AsyncIterator[Batch]:
        """What has come since the last time, at most one event an output; ``patience`` as for
        ``EventStream.batches``, with each prompt."""
        if len(self._streams) == 1:
            async for events in self._streams[0].batches(patience):
                yield [(0, event) for event in events]
            return
        # No prompt gets further ahead than one batch; what comes meanwhile waits in its stream.
        ready: asyncio.Queue[Batch | Exception | None] = asyncio.Queue(len(self._streams))
        self._pumps = [
            asyncio.ensure_future(_pump(index, stream.batches(patience), ready))
            for index, stream in enumerate(self._streams)
        ]
        num_open = len(self._streams)
        while num_open:
            news = [await ready.get()]
            while not ready.empty():
                news.append(ready.get_nowait())
            num_open -= news.count(None)
            for each in news:
                if isinstance(each, Exception):
                    raise each
            if batch := [pair for each in news if isinstance(each, list) for pair in each]:
                yield batch

    def failure(self, event: TokenEvent) -> Exception | None:
        """What a client is told where an output ended before its time."""
        match event.finish_reason:
            case FinishReason.DEADLINE:
                return DeadlinePassed("the deadline has passed before the answer was complete")
            case FinishReason.ABORT if self._frontend.is_draining:
                return Draining("the server has ended before the answer was complete")
            case FinishReason.ABORT:
                return Aborted(f"request_id {event.request_id!r} was aborted")
            case FinishReason.ERROR:
                return event.failure
        return None

    def close(self) -> None:
        """Ends what has not ended."""
        for pump in self._pumps:
            pump.cancel()
        for stream in self._streams:
            stream.close()

    async def _require_room(self, num_tokens: int) -> None:
        """Refuses so many tokens of the first prompts, with the number of all."""
        try:
            self._frontend.require_room_in_queue(1, num_tokens)
        except InvalidPrompt:
            of_all = sum([len(await self._encoded(ask)) for ask in self._ask.asks])
            self._frontend.require_room_in_queue(1, of_all)
            raise

    async def _encoded(self, ask: Ask) -> Sequence[int]:
        return await self._frontend.encode(ask.prompt, add_special_tokens=ask.add_special_tokens)

    async def _echo(self, index: int) -> str:
        prompt, model = self._ask.asks[index].prompt, self._frontend.model
        if not self._ask.echo or isinstance(prompt, str):
            return prompt if self._ask.echo and isinstance(prompt, str) else ""
        if model.tokenizer is None:
            return ""
        return await self._frontend.decode(
            self._streams[index].request.prompt_token_ids,
            skip_special_tokens=self._ask.asks[index].params.skip_special_tokens,
        )


@asynccontextmanager
async def accepted(frontend: Frontend, ask: OpenAiAsk) -> AsyncIterator[Generation]:
    """The requests of an ask; afterwards none of them goes on.

    Raises:
        JaxInferError: as ``Frontend.generate``.
    """
    generation = Generation(frontend, ask)
    try:
        await generation.begin()
        yield generation
    finally:
        generation.close()


async def _pump(
    index: int,
    batches: AsyncIterator[list[TokenEvent]],
    ready: "asyncio.Queue[Batch | Exception | None]",
) -> None:
    try:
        async for events in batches:
            await ready.put([(index, event) for event in events])
        await ready.put(None)
    except Exception as error:
        await ready.put(error)
