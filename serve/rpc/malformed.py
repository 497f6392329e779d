"""Bytes that are no message, or too many to be made one: told apart before a method sees them.

gRPC's own answer would be UNKNOWN, with a stack trace in the log for each of them.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from grpc import HandlerCallDetails, RpcMethodHandler
from grpc.aio import ServicerContext

#: Methods of these services ask whether what they get is malformed; see ``serve.rpc.answers``.
_OURS = "/jaxinfer."
#: The only service of others that anybody may call; its methods do not ask.
_HEALTH = "/grpc.health.v1.Health/"


@dataclass(frozen=True)
class Malformed:
    """What a method gets in place of a message."""

    why: str
    code: grpc.StatusCode = grpc.StatusCode.INTERNAL

    async def refuse(self, context: ServicerContext) -> None:
        """Ends the call."""
        await context.abort(self.code, self.why)


class ReadSafely(grpc.aio.ServerInterceptor):
    """Hands methods a ``Malformed`` for bytes that cannot be read."""

    def __init__(self, max_bytes: int):
        """``max_bytes``: of a request."""
        self._max_bytes = max_bytes

    async def intercept_service(
        self,
        continuation: Callable[[HandlerCallDetails], Awaitable[RpcMethodHandler]],
        details: HandlerCallDetails,
    ) -> RpcMethodHandler:
        handler = await continuation(details)
        if handler is None or not details.method.startswith((_OURS, _HEALTH)):
            return handler
        read = _safe(handler.request_deserializer, self._max_bytes)
        handler = handler._replace(request_deserializer=read)
        if details.method.startswith(_OURS):
            return handler
        return handler._replace(
            unary_unary=_asking(handler.unary_unary), unary_stream=_asking(handler.unary_stream)
        )


def _asking(method: Callable[..., Awaitable[Any]] | None) -> Callable[..., Awaitable[Any]] | None:
    if method is None:
        return None

    async def ask(request: Any, context: ServicerContext) -> Any:
        if isinstance(request, Malformed):
            await request.refuse(context)
        return await method(request, context)

    return ask


def _safe(read: Callable[[bytes], Any] | None, most: int) -> Callable[[bytes], Any] | None:
    if read is None:  # whoever refuses does not read
        return None

    def read_safely(data: bytes) -> Any:
        if len(data) > most:
            return Malformed(
                f"the request has {len(data)} bytes, of which at most {most} can mean anything"
                " here",
                grpc.StatusCode.INVALID_ARGUMENT,
            )
        try:
            return read(data)
        except Exception as error:  # protobuf's implementations raise what they like
            return Malformed(f"the request cannot be read: {str(error)[:200]}")

    return read_safely
