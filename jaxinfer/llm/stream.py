"""Requests being generated, as those who wait for them see it."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Self

from jaxinfer.engine.engine import Engine
from jaxinfer.engine.request import Request
from jaxinfer.llm.prompts import Prompt
from jaxinfer.outputs import RequestOutput, TokenEvent, gather_events
from jaxinfer.sampling_params import SamplingParams


class RequestStream:
    """Iterate over it for the events of its requests, as they happen.

    The engine takes its steps while somebody iterates. ``request_ids`` are in the order of the
    prompts; ``outputs`` gathers what has come so far, and may be asked at any time. A stream left
    early must be closed, or its requests keep their slots; a ``with`` block does it:

        with llm.stream(prompts) as stream:
            for event in stream: ...
    """

    def __init__(
        self,
        engine: Engine,
        step: Callable[[], object],
        prompts: Sequence[Prompt],
        params: Sequence[SamplingParams],
        request_ids: Sequence[str],
    ):
        """Submits all of them, or none.

        Args:
            step: takes one step of the engine.

        Raises:
            InvalidPrompt, InvalidParameter, CapacityError, EngineClosed: as ``Engine.submit``.
        """
        self.request_ids = tuple(request_ids)
        self._engine, self._step = engine, step
        self._prompts, self._params = prompts, params
        self._new: deque[TokenEvent] = deque()
        self._events: dict[str, list[TokenEvent]] = {}
        self._num_open: dict[str, int] = {}
        try:
            for request_id, prompt, wanted in zip(request_ids, prompts, params, strict=True):
                self._submit(request_id, prompt, wanted)
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[TokenEvent]:
        while self._num_open or self._new:
            if self._new:
                yield self._new.popleft()
            else:
                self._step()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Aborts what has not ended, and waits until its slots and pages are free again."""
        for request_id in list(self._num_open):
            self._engine.abort(request_id)
        while self._num_open:
            self._step()

    @property
    def num_outputs(self) -> int:
        """Samples of all prompts together."""
        return sum(params.n for params in self._params)

    @property
    def num_finished(self) -> int:
        """Requests whose outputs have all ended."""
        return len(self._events) - len(self._num_open)

    @property
    def outputs(self) -> list[RequestOutput]:
        """What has come so far, in the order of the prompts."""
        requests = zip(self.request_ids, self._prompts, self._params, strict=True)
        return [
            gather_events(
                self._events[request_id],
                request_id=request_id,
                prompt=prompt.text,
                prompt_token_ids=prompt.token_ids,
                num_outputs=params.n,
            )
            for request_id, prompt, params in requests
        ]

    def _submit(self, request_id: str, prompt: Prompt, params: SamplingParams) -> None:
        request = Request(request_id=request_id, prompt_token_ids=prompt.token_ids, params=params)
        # First of all: once submitted, another thread's step may bring its events.
        self._events[request_id] = []
        self._num_open[request_id] = params.n
        try:
            self._engine.submit(request, self._take)
        except BaseException:
            del self._events[request_id], self._num_open[request_id]
            raise

    def _take(self, events: list[TokenEvent]) -> None:
        self._new.extend(events)
        for event in events:
            self._events[event.request_id].append(event)
            if event.finish_reason is not None:
                self._count_end(event.request_id)

    def _count_end(self, request_id: str) -> None:
        self._num_open[request_id] -= 1
        if not self._num_open[request_id]:
            del self._num_open[request_id]
