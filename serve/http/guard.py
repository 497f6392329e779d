"""Stands before the application: who may call, and how requests are called."""

import string
import uuid
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import Unauthenticated
from serve.http.responses import refusal
from serve.tokens import BearerTokens

#: Whoever balances load has no token.
_OPEN = ("/health",)
_PRINTABLE = frozenset(string.printable) - frozenset(string.whitespace)
_MAX_ID = 256


class Guard:
    """Lets requests through that name a token, and gives each answer the id of its request.

    The id is the client's own, where it sent a readable one in ``X-Request-Id``.
    """

    def __init__(self, app: ASGIApp, tokens: Sequence[str]):
        """``tokens``: none: nobody is asked."""
        self._app = app
        self._tokens = BearerTokens(tokens) if tokens else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _read_id(headers.get("x-request-id")) or uuid.uuid4().hex
        pair = (b"x-request-id", request_id.encode())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), pair]
            await send(message)

        if self._tokens is not None and scope["path"] not in _OPEN:
            given = headers.get("authorization")
            if given is None or not self._tokens.allow(given.encode("latin-1")):
                await _refuse_token(given)(scope, receive, send_with_id)
                return
        await self._app(scope, receive, send_with_id)


def _refuse_token(given: str | None):  # type: ignore[no-untyped-def]
    words = (
        "no token: send the header Authorization: Bearer TOKEN"
        if given is None
        else "the token in the header Authorization is not one of this server's"
    )
    response = refusal(Unauthenticated(words))
    response.headers["WWW-Authenticate"] = "Bearer"
    return response


def _read_id(given: str | None) -> str | None:
    if given and len(given) <= _MAX_ID and _PRINTABLE.issuperset(given):
        return given
    return None
