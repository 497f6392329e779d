"""A server from its first port to its last request."""

import asyncio
import logging
import signal
from collections.abc import Coroutine
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from jaxinfer.outputs import FinishReason
from serve.admin import Admin
from serve.descriptors import room_for
from serve.frontend import Frontend
from serve.http.server import HttpServer
from serve.metrics import Metrics
from serve.model import ServedModel
from serve.rpc.admin import AdminServer
from serve.rpc.server import RpcServer
from serve.settings import ServeSettings
from serve.tracing import Tracing
from serve.watchdog import Watchdog

_log = logging.getLogger(__name__)

#: Seconds that the engine has to end what was aborted, before that is done without it.
_ABORT_SECONDS = 10.0


class Server:
    """Serves one model in the running event loop.

    Attributes:
        frontend: the way of its requests to the engine.
        metrics: what Prometheus is told.
        has_failed: it ended because it could not serve any more.
    """

    def __init__(self, model: ServedModel, settings: ServeSettings, tracing: Tracing | None = None):
        """``tracing``: another than the settings' own."""
        num_ports = 1 + (settings.http_port is not None) + (settings.admin_port is not None)
        settings = replace(settings, max_connections=room_for(settings.max_connections, num_ports))
        self._settings = settings
        self._engine = model.engine
        self.has_failed = False
        self.metrics = Metrics(model)
        if tracing is None and settings.otlp_endpoint is not None:
            tracing = Tracing.to(settings.otlp_endpoint, model.name)
        self._tracing = tracing
        self.frontend = Frontend(
            model,
            max_pending_tokens=settings.max_pending_tokens,
            observers=(self.metrics.requests, *(() if tracing is None else (tracing,))),
        )
        self._rpc = RpcServer(self.frontend, settings, tracing)
        self._http: HttpServer | None = None
        admin = Admin(model, settings, begin_drain=self._begin_drain, show_health=self._show_awake)
        self._admin = None if settings.admin_port is None else AdminServer(admin, settings)
        self._drained = asyncio.Event()
        self._watchdog = Watchdog(
            model.engine, patience=settings.step_patience, on_change=self._show_health
        )
        if settings.http_port is not None:
            self._http = HttpServer(
                self.frontend,
                settings,
                is_well=lambda: self._watchdog.is_well and not model.engine.is_asleep,
                metrics=self.metrics.render,
                tracing=tracing,
            )
        self._watching: asyncio.Future[None] | None = None
        self._hanging: asyncio.TimerHandle | None = None
        self._draining: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Future[Any]] = set()

    @property
    def grpc_port(self) -> int:
        """Another than asked for where that was 0."""
        return self._rpc.port

    @property
    def http_port(self) -> int | None:
        """The same; None where HTTP is not served."""
        return None if self._http is None else self._http.port

    @property
    def admin_port(self) -> int | None:
        """The same for operators; None where they are not served."""
        return None if self._admin is None else self._admin.port

    async def start(self) -> None:
        """Opens the ports; the engine is ready.

        Raises:
            OSError: a port is taken.
        """
        await self._rpc.start()
        if self._http is not None:
            await self._http.start()
        if self._admin is not None:
            await self._admin.start()
        self._watching = asyncio.ensure_future(self._watchdog.run())
        self._watching.add_done_callback(self._watch_ended)
        loop = asyncio.get_running_loop()

        def tell(ended: Future[None]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._fail, "the engine has ended")

        self._engine.ended.add_done_callback(tell)

    async def drain(self, seconds: float | None = None) -> None:
        """Takes no new requests, waits for those under way, and closes the ports.

        What has not ended after ``seconds`` (None: the settings') is aborted. By our own count:
        gRPC would wait for every open health watch, too.
        """
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain(seconds))
        await self._draining

    async def _drain(self, seconds: float | None) -> None:
        self.frontend.is_draining = True
        if self._watching is not None:
            self._watching.cancel()
        await self._rpc.show_draining()
        await self._wait_for_requests(self._settings.drain_seconds if seconds is None else seconds)
        if self.frontend.num_unfinished:
            _log.warning("drained for too long: %d requests end", self.frontend.num_unfinished)
            self.frontend.abort_all()
            await self._wait_for_requests(_ABORT_SECONDS)
        if self.frontend.num_unfinished:
            _log.critical("the engine does not come to an end: its requests are ended without it")
            self.has_failed = True
            self.frontend.end_all(FinishReason.ABORT)
        ports = (self._rpc, self._http, self._admin)
        await asyncio.gather(*(port.stop() for port in ports if port is not None))
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        self._drained.set()

    async def _wait_for_requests(self, seconds: float) -> None:
        """Until none is left, or for that long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while self.frontend.num_unfinished and loop.time() < deadline:
            await asyncio.sleep(0.02)

    async def serve_until_drained(self) -> None:
        """Runs until SIGTERM or SIGINT and the drain that follows, or until it has failed."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self.end)
        await self._drained.wait()

    def end(self) -> None:
        """Begins the drain; asked once more, does not wait for what is under way."""
        if self._draining is not None:
            _log.warning("%d requests end at once", self.frontend.num_unfinished)
            self.frontend.abort_all()
            return
        if self.frontend.num_unfinished:
            _log.warning(
                "%d requests have %g s to end; another signal ends them at once",
                self.frontend.num_unfinished,
                self._settings.drain_seconds,
            )
        self._begin(self.drain())

    def _begin_drain(self, seconds: float | None) -> int:
        self.frontend.is_draining = True
        self._begin(self.drain(seconds))
        return self.frontend.num_unfinished

    async def _show_awake(self, is_awake: bool) -> None:
        await self._rpc.show_health(is_awake and self._watchdog.is_well)

    async def _show_health(self, is_well: bool) -> None:
        if self._hanging is not None:
            self._hanging.cancel()
        if not is_well:
            _log.error("no step was finished for %g s", self._settings.step_patience)
            self._hanging = asyncio.get_running_loop().call_later(
                self._settings.hang_patience, self._fail, "the device hangs"
            )
        await self._rpc.show_health(is_well and not self._engine.is_asleep)

    def _fail(self, reason: str) -> None:
        """A server that cannot serve ends, at once: whoever asks for it better asks another."""
        if self._drained.is_set():
            return
        _log.critical("%s: so does this server", reason)
        self.has_failed = True
        self.frontend.is_draining = True
        self.frontend.end_all(FinishReason.ERROR, reason)
        self._begin(self.drain(seconds=0))

    def _watch_ended(self, watching: "asyncio.Future[None]") -> None:
        if not watching.cancelled():
            _log.critical("nobody watches the engine", exc_info=watching.exception())
            self._fail("the watchdog has ended")

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        """A task of its own."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
