"""Bytes that are no message: told apart before a method sees them.

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


@dataclass(frozen=True)
class Malformed:
    """What a method gets in place of a message."""

    why: str

    async def refuse(self, context: ServicerContext) -> None:
        """Ends the call."""
        await context.abort(grpc.StatusCode.INTERNAL, f"the request cannot be read: {self.why}")


class ReadSafely(grpc.aio.ServerInterceptor):
    """Hands methods a ``Malformed`` for bytes that cannot be read."""

    async def intercept_service(
        self,
        continuation: Callable[[HandlerCallDetails], Awaitable[RpcMethodHandler]],
        details: HandlerCallDetails,
    ) -> RpcMethodHandler:
        handler = await continuation(details)
        if handler is None or not details.method.startswith(_OURS):
            return handler
        return handler._replace(request_deserializer=_safe(handler.request_deserializer))


def _safe(read: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    if read is None:  # whoever refuses does not read
        return None

    def read_safely(data: bytes) -> Any:
        try:
            return read(data)
        except Exception as error:  # protobuf's implementations raise what they like
            return Malformed(str(error)[:200])

    return read_safely
