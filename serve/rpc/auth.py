"""Who may call over gRPC: bearer tokens in the metadata ``authorization``."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
from grpc import HandlerCallDetails, RpcMethodHandler

from serve.tokens import BearerTokens

#: Whoever balances load has no token.
_OPEN = "/grpc.health.v1.Health/"


class BearerAuth(grpc.aio.ServerInterceptor):
    """Lets calls through that name one of the tokens, and all calls of the health service."""

    def __init__(self, tokens: Sequence[str]):
        self._tokens = BearerTokens(tokens)

    async def intercept_service(
        self,
        continuation: Callable[[HandlerCallDetails], Awaitable[RpcMethodHandler]],
        details: HandlerCallDetails,
    ) -> RpcMethodHandler:
        if details.method.startswith(_OPEN):
            return await continuation(details)
        given = dict(details.invocation_metadata).get("authorization")
        if given is None:
            return _refusing("no token: send the metadata authorization: Bearer TOKEN")
        if not self._tokens.allow(given):
            return _refusing("the token in the metadata authorization is not one of this server's")
        return await continuation(details)


def _refusing(message: str) -> RpcMethodHandler:
    async def refuse(requests: Any, context: grpc.aio.ServicerContext) -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, message)

    # On the wire every call is a stream, and of this kind nothing is read before it is refused.
    return grpc.stream_stream_rpc_method_handler(refuse)
