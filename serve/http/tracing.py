"""Which trace a request over HTTP belongs to."""

from starlette.types import ASGIApp, Receive, Scope, Send

from serve.tracing import Tracing


class TraceEntry:
    """Enters the trace that a request's headers name; all of it runs in the same task."""

    def __init__(self, app: ASGIApp, tracing: Tracing):
        self._app, self._tracing = app, tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http":
            headers = scope["headers"]
            self._tracing.enter((k.decode("latin-1"), v.decode("latin-1")) for k, v in headers)
        await self._app(scope, receive, send)
