"""What goes back: one document, or events as they come."""

import asyncio
import functools
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serve.http.bodies import ClientGone
from serve.openai import error_body

_log = logging.getLogger(__name__)

T = TypeVar("T")

#: Also of what is not ASCII, so that half a surrogate pair does no harm.
_encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def document(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON document."""
    return Response(_encode(value).encode(), status, headers=headers, media_type="application/json")


def refusal(error: Exception) -> Response:
    """What an exception is told as."""
    status, body, headers = error_body(error)
    if status >= 500 and body["error"]["type"] == "internal_error":
        _log.error("a request failed", exc_info=error)
    return document(body, status, headers)


def answers(method: Callable[..., Awaitable[Response]]) -> Callable[..., Awaitable[Response]]:
    """For an endpoint: its exceptions become the answers that the table says."""

    @functools.wraps(method)
    async def answered(request: Request) -> Response:
        try:
            return await method(request)
        except ClientGone:
            return Response(status_code=499)  # which nobody reads
        except Exception as error:
            return refusal(error)

    return answered


async def while_there(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Does the work unless the client leaves meanwhile, which ends it.

    Raises:
        ClientGone: it has left.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events: each chunk is one, and those of a step travel together."""

    media_type = "text/event-stream"

    def __init__(self, batches: AsyncGenerator[list[dict[str, Any]], None]):
        """``batches``: of chunks; closed in the end, and when the client leaves."""
        super().__init__()
        self._batches = batches
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-cache"
        self.headers["x-accel-buffering"] = "no"  # proxies pass events on at once

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends all of them."""
        try:
            await while_there(receive, self._write(send))
        except ClientGone:
            pass
        finally:
            await self._batches.aclose()

    async def _write(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": 200, "headers": self.raw_headers},
        )
        last = b"data: [DONE]\n\n"
        try:
            async for chunks in self._batches:
                events = "".join([f"data: {_encode(chunk)}\n\n" for chunk in chunks]).encode()
                await send({"type": "http.response.body", "body": events, "more_body": True})
        except Exception as error:
            # The status is gone; an error at the end of the stream has to do.
            status, body, _ = error_body(error)
            if status == 500:
                _log.error("a request failed", exc_info=error)
            last = f"data: {_encode(body)}\n\n".encode()
        await send({"type": "http.response.body", "body": last, "more_body": False})
