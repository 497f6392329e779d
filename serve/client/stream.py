"""The events of one request, as they come: iterate over it, or leave it and the request ends."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, Self

import grpc

from jaxinfer.outputs import TokenEvent
from serve.client.errors import Cancelled, ServerError, error_of
from serve.client.reading import Reader
from serve.client.results import Generation
from serve.client.retry import Attempts


class StreamState:
    """What streams of both kinds are.

    Each output ends with an event that has a ``finish_reason``. A failure is raised after what had
    come before it. Whoever leaves early closes the stream, by ``with``, by ``close``, or by letting
    go of it: the server then gives the request's place to others.
    """

    def __init__(self, begin: Callable[[float | None], Any], attempts: Attempts, reader: Reader):
        """``begin``: makes a call that has so many seconds."""
        self._begin, self._attempts, self._reader = begin, attempts, reader
        self._is_accepted = False
        self._is_over = False
        self._is_closed = False
        self._call = begin(attempts.timeout())

    @property
    def request_id(self) -> str:
        """For ``abort``."""
        return self._reader.request.request_id

    @property
    def num_outputs(self) -> int:
        """Samples of the prompt."""
        return self._reader.num_outputs

    @property
    def result(self) -> Generation:
        """What has come so far."""
        return self._reader.result()

    def close(self) -> None:
        """Ends the request where it has not ended."""
        if not (self._is_over or self._is_closed):
            self._is_closed = True
            self._call.cancel()
            self._reader.abort_open()

    def _take(self, message: Any) -> TokenEvent | None:
        self._is_accepted = True
        return self._reader.take(message)

    def _finish(self) -> None:
        self._is_over = True
        self._reader.require_success()

    def _wait_after(self, failed: grpc.RpcError) -> tuple[ServerError, float]:
        """What failed, and seconds until it is tried again; raises it where it is not."""
        error = error_of(failed)
        error.__cause__ = failed
        try:
            if self._is_accepted:
                raise error
            return error, self._attempts.wait_after(error)
        except ServerError:
            self._is_over = True
            raise

    def __del__(self) -> None:
        # Without its call it never began; without its loop nobody is left to be told.
        with contextlib.suppress(AttributeError, RuntimeError):
            self._call.cancel()


class Stream(StreamState):
    """For one thread at a time; ``close`` may be called from any."""

    def __init__(
        self,
        begin: Callable[[float | None], Any],
        attempts: Attempts,
        reader: Reader,
        recover: Callable[[ServerError], None],
    ):
        """``recover``: called before the wait for another attempt."""
        super().__init__(begin, attempts, reader)
        self._recover = recover

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> TokenEvent:
        """
        Raises:
            ServerError: the call failed.
        """
        while not (self._is_over or self._is_closed):
            try:
                event = self._take(next(self._call))
            except StopIteration:
                self._finish()
            except grpc.RpcError as failed:
                self._retry(failed)
            else:
                if event is not None:
                    return event
        raise StopIteration

    def _retry(self, failed: grpc.RpcError) -> None:
        if self._is_closed:
            return
        error, wait = self._wait_after(failed)
        self._recover(error)
        time.sleep(wait)
        if not self._is_closed:
            self._call = self._begin(self._attempts.timeout())


def require_own_cancellation() -> None:
    """When a call ended with CancelledError: does nothing where it was its task that was cancelled.

    Raises:
        Cancelled: it was the call, because its client was closed.
    """
    task = asyncio.current_task()
    if task is not None and not task.cancelling():
        raise Cancelled("the client was closed") from None


class AsyncStream(StreamState):
    """For the loop that it was made in."""

    def __init__(
        self,
        begin: Callable[[float | None], Any],
        attempts: Attempts,
        reader: Reader,
        recover: Callable[[ServerError], Any],
    ):
        """``recover``: awaited before the wait for another attempt."""
        super().__init__(begin, attempts, reader)
        self._recover = recover

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    async def aclose(self) -> None:
        """As ``close``, for ``contextlib.aclosing``."""
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenEvent:
        """
        Raises:
            ServerError: the call failed.
        """
        while not (self._is_over or self._is_closed):
            try:
                message = await self._call.read()
            except grpc.RpcError as failed:
                await self._retry(failed)
                continue
            except asyncio.CancelledError:
                if self._is_closed:
                    break
                require_own_cancellation()
                raise
            if message is grpc.aio.EOF:
                self._finish()
            elif (event := self._take(message)) is not None:
                return event
        raise StopAsyncIteration

    async def _retry(self, failed: grpc.RpcError) -> None:
        if self._is_closed:
            return
        error, wait = self._wait_after(failed)
        await self._recover(error)
        await asyncio.sleep(wait)
        if not self._is_closed:
            self._call = self._begin(self._attempts.timeout())
