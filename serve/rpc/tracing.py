"""Which trace a call over gRPC belongs to."""

from collections.abc import Awaitable, Callable

import grpc
from grpc import HandlerCallDetails, RpcMethodHandler

from serve.tracing import Tracing


class TraceEntry(grpc.aio.ServerInterceptor):
    """Enters the trace that a call's metadata name; its handler runs in the same task."""

    def __init__(self, tracing: Tracing):
        self._tracing = tracing

    async def intercept_service(
        self,
        continuation: Callable[[HandlerCallDetails], Awaitable[RpcMethodHandler]],
        details: HandlerCallDetails,
    ) -> RpcMethodHandler:
        self._tracing.enter(details.invocation_metadata)
        return await continuation(details)
