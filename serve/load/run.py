"""Sends a load and writes down what happened."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from serve.load.prompts import Conversation, TokenIds
from serve.load.timeline import Timeline


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What one request brought.

    Attributes:
        arrivals: when chunks with tokens came.
        token_ids: None: the server does not tell them.
    """

    arrivals: tuple[float, ...]
    prompt_tokens: int
    output_tokens: int
    token_ids: TokenIds | None = None
    cached_tokens: int | None = None


class Backend(Protocol):
    """A server, by its protocol."""

    async def send(self, prompt: str | TokenIds, output_len: int) -> Reply:
        """Asks for exactly so many tokens; raises where they do not come."""


async def run_load(
    backend: Backend,
    conversations: Sequence[Conversation],
    *,
    due: Iterable[float] | None = None,
    max_concurrency: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
    on_end: Callable[[Timeline], None] = lambda timeline: None,
) -> list[Timeline]:
    """Every request's timeline, in the order in which they ended. What fails is one of them.

    Args:
        due: seconds from now at which each conversation begins; None: when there is room.
        max_concurrency: requests under way at once at most.
        on_end: is told each timeline when it is complete.
    """
    room: AbstractAsyncContextManager = (
        nullcontext() if max_concurrency is None else asyncio.Semaphore(max_concurrency)
    )
    timelines: list[Timeline] = []

    async def talk(conversation: Conversation, at: float | None) -> None:
        said: TokenIds = ()
        for turn in conversation:
            prompt = said + turn.prompt if isinstance(turn.prompt, tuple) else turn.prompt
            async with room:
                timeline, reply = await _ask(backend, prompt, turn.output_len, at, clock)
            timelines.append(timeline)
            on_end(timeline)
            if reply is None:
                return
            if isinstance(prompt, tuple):
                said = prompt + (turn.stand_in if reply.token_ids is None else reply.token_ids)
            # The next turn is due at once: its lag is that of this loop.
            at = None if at is None else timeline.ended

    start = clock()
    async with asyncio.TaskGroup() as group:
        if due is None:
            for conversation in conversations:
                group.create_task(talk(conversation, None))
        else:
            for conversation, seconds in zip(conversations, due, strict=False):
                await asyncio.sleep(max(0.0, start + seconds - clock()))
                group.create_task(talk(conversation, start + seconds))
    return timelines


async def _ask(
    backend: Backend,
    prompt: str | TokenIds,
    output_len: int,
    due: float | None,
    clock: Callable[[], float],
) -> tuple[Timeline, Reply | None]:
    sent = clock()
    try:
        reply = await backend.send(prompt, output_len)
        if not reply.arrivals:
            raise ValueError("no token came")
    except Exception as error:
        failure = f"{type(error).__name__}: {error}"[:200]
        return Timeline(due=due, sent=sent, ended=clock(), error=failure), None
    timeline = Timeline(
        due=due,
        sent=sent,
        ended=clock(),
        arrivals=reply.arrivals,
        prompt_tokens=reply.prompt_tokens,
        output_tokens=reply.output_tokens,
        cached_tokens=reply.cached_tokens,
    )
    return timeline, reply
