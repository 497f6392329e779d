"""The HTTP port."""

import asyncio
import logging
import math
import socket
from collections.abc import Callable

import uvicorn

from serve.frontend import Frontend
from serve.http.app import application
from serve.http.connection import bounded_connection
from serve.http.facts import Render
from serve.http.listener import BoundedListener
from serve.http.tracing import TraceEntry
from serve.settings import ServeSettings
from serve.tls import server_context
from serve.tracing import Tracing


class HttpServer:
    """Serves a frontend over HTTP, in the running event loop.

    Attributes:
        port: another than asked for where that was 0.
    """

    def __init__(
        self,
        frontend: Frontend,
        settings: ServeSettings,
        *,
        is_well: Callable[[], bool],
        metrics: Render | None,
        tracing: Tracing | None = None,
    ):
        """``settings.http_port`` is a number; the others: see ``application``."""
        self._settings = settings
        app = application(frontend, settings, is_well=is_well, metrics=metrics)
        config = uvicorn.Config(
            app if tracing is None else TraceEntry(app, tracing),
            http=bounded_connection(settings.http_patience, settings.max_metadata_bytes),
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level=logging.ERROR,  # what clients do wrong is no news
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=math.ceil(settings.http_keep_alive),
        )
        config.load()
        config.ssl = None if settings.tls is None else server_context(settings.tls)
        self._server = uvicorn.Server(config)
        self._server.lifespan = config.lifespan_class(config)
        self._ticking: asyncio.Future[None] | None = None
        self.port = 0

    async def start(self) -> None:
        """Opens the port.

        Raises:
            OSError: the port is taken.
        """
        host, port = self._settings.host, self._settings.http_port
        assert port is not None
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            listener = socket.create_server((host, port), family=family, backlog=2048)
        except OSError as error:
            raise OSError(f"cannot listen on {host}:{port}: {error}") from error
        listener = BoundedListener(listener, most=self._settings.max_connections)
        self.port = listener.getsockname()[1]
        await self._server.startup(sockets=[listener])
        self._ticking = asyncio.ensure_future(self._server.main_loop())  # it keeps the date

    async def stop(self) -> None:
        """Closes the port; answers that are on their way have the settings' grace."""
        if self._ticking is None:
            return
        self._ticking.cancel()
        for server in self._server.servers:
            server.close()
        state = self._server.server_state
        for connection in list(state.connections):
            connection.shutdown()
        await self._wait_for_connections(self._settings.stop_grace_seconds)
        for connection in list(state.connections):
            connection.transport.abort()
        await self._wait_for_connections(1.0)

    async def _wait_for_connections(self, seconds: float) -> None:
        """Until none is left, or for that long."""
        state, loop = self._server.server_state, asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while (state.connections or state.tasks) and loop.time() < deadline:
            await asyncio.sleep(0.005)
