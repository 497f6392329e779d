"""Who may call: bearer tokens in the metadata ``authorization``."""

import hmac
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
from grpc import HandlerCallDetails, RpcMethodHandler

from jaxinfer.errors import InvalidParameter

#: Whoever balances load has no token.
_OPEN = "/grpc.health.v1.Health/"


def read_tokens(path: Path) -> tuple[str, ...]:
    """The tokens of a file, one a line; empty lines and those that begin with ``#`` are none.

    Raises:
        InvalidParameter: there is none, or the file cannot be read.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParameter(
            f"the file of tokens {str(path)!r} cannot be read: {error}"
        ) from error
    tokens = tuple(line for line in lines if line and not line.startswith("#"))
    if not tokens:
        raise InvalidParameter(f"the file of tokens {str(path)!r} holds none: write one a line")
    return tokens


class BearerAuth(grpc.aio.ServerInterceptor):
    """Lets calls through that name one of the tokens, and all calls of the health service."""

    def __init__(self, tokens: Sequence[str]):
        self._tokens = [token.encode() for token in tokens]

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
        if not self.allows(given):
            return _refusing("the token in the metadata authorization is not one of this server's")
        return await continuation(details)

    def allows(self, given: str | bytes) -> bool:
        """Whether ``Bearer TOKEN`` names one of the tokens; takes as long for any wrong one."""
        kind, _, token = (given if isinstance(given, bytes) else given.encode()).partition(b" ")
        # All of them are compared, so that time does not tell which.
        matches = [hmac.compare_digest(token.strip(), each) for each in self._tokens]
        return kind.lower() == b"bearer" and any(matches)


def _refusing(message: str) -> RpcMethodHandler:
    async def refuse(request: Any, context: grpc.aio.ServicerContext) -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, message)

    return grpc.unary_unary_rpc_method_handler(refuse)
