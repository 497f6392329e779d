"""A server from its first port to its last request."""

import asyncio
import logging
import signal

from serve.frontend import Frontend
from serve.metrics import Metrics
from serve.model import ServedModel
from serve.rpc.server import RpcServer
from serve.settings import ServeSettings
from serve.watchdog import Watchdog

_log = logging.getLogger(__name__)


class Server:
    """Serves one model in the running event loop.

    Attributes:
        frontend: the way of its requests to the engine.
        metrics: what Prometheus is told.
    """

    def __init__(self, model: ServedModel, settings: ServeSettings):
        self._settings = settings
        self.metrics = Metrics(model)
        self.frontend = Frontend(
            model,
            max_pending_tokens=settings.max_pending_tokens,
            observers=(self.metrics.requests,),
        )
        self._rpc = RpcServer(self.frontend, settings)
        self._drained = asyncio.Event()
        self._watchdog = Watchdog(
            model.engine, patience=settings.step_patience, on_change=self._show_health
        )
        self._watching: asyncio.Future[None] | None = None

    @property
    def grpc_port(self) -> int:
        """Another than asked for where that was 0."""
        return self._rpc.port

    async def start(self) -> None:
        """Opens the ports; the engine is ready.

        Raises:
            OSError: a port is taken.
        """
        await self._rpc.start()
        self._watching = asyncio.ensure_future(self._watchdog.run())

    async def drain(self, seconds: float | None = None) -> None:
        """Takes no new requests, waits for those under way, and closes the ports.

        What has not ended after ``seconds`` (None: the settings') is aborted. By our own count:
        gRPC would wait for every open health watch, too.
        """
        self.frontend.is_draining = True
        if self._watching is not None:
            self._watching.cancel()
        await self._rpc.show_draining()
        deadline = asyncio.get_running_loop().time() + (
            self._settings.drain_seconds if seconds is None else seconds
        )
        while self.frontend.num_unfinished and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        if self.frontend.num_unfinished:
            _log.warning("drained for too long: %d requests end", self.frontend.num_unfinished)
            self.frontend.abort_all()
        await self._rpc.stop()
        self._drained.set()

    async def serve_until_drained(self) -> None:
        """Runs until SIGTERM or SIGINT and the drain that follows."""
        loop = asyncio.get_running_loop()
        draining: list[asyncio.Future[None]] = []

        def begin() -> None:
            if not draining:
                draining.append(asyncio.ensure_future(self.drain()))

        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, begin)
        await self._drained.wait()

    async def _show_health(self, is_well: bool) -> None:
        if not is_well:
            _log.error("no step was finished for %g s", self._settings.step_patience)
        await self._rpc.show_health(is_well)
