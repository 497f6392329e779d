"""A server from its first port to its last request."""

import asyncio
import logging
import signal

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from serve.auth import BearerAuth
from serve.frontend import Frontend
from serve.inference import Inference
from serve.model import ServedModel
from serve.proto import inference_pb2, inference_pb2_grpc
from serve.settings import ServeSettings
from serve.tls import server_credentials
from serve.watchdog import Watchdog

_log = logging.getLogger(__name__)

INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Server:
    """Serves one model over gRPC, in the running event loop.

    Attributes:
        port: of gRPC; another than asked for where that was 0.
    """

    def __init__(self, model: ServedModel, settings: ServeSettings):
        self._settings = settings
        self.frontend = Frontend(model, max_pending_tokens=settings.max_pending_tokens)
        self._health = health.aio.HealthServicer()
        auth = [BearerAuth(settings.tokens)] if settings.tokens else []
        self._grpc = grpc.aio.server(interceptors=auth, options=_channel_options(settings))
        inference = Inference(self.frontend, deadline_margin=settings.deadline_margin)
        inference_pb2_grpc.add_InferenceServicer_to_server(inference, self._grpc)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        names = (INFERENCE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._grpc)
        self.port = 0
        self._drained = asyncio.Event()
        self._watchdog = Watchdog(
            model.engine, patience=settings.step_patience, on_change=self._show_health
        )
        self._watching: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Opens the ports; the engine is ready, so health says so at once.

        Raises:
            OSError: the port is taken.
        """
        address = f"{self._settings.host}:{self._settings.grpc_port}"
        try:
            self.port = self._open(address)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}") from error
        await self._health.set("", SERVING)
        await self._health.set(INFERENCE, SERVING)
        await self._grpc.start()
        self._watching = asyncio.ensure_future(self._watchdog.run())

    async def drain(self, seconds: float | None = None) -> None:
        """Takes no new requests, waits for those under way, and closes the ports.

        What has not ended after ``seconds`` (None: the settings') is aborted. By our own count:
        gRPC would wait for every open health watch, too.
        """
        self.frontend.is_draining = True
        if self._watching is not None:
            self._watching.cancel()
        await self._health.enter_graceful_shutdown()
        deadline = asyncio.get_running_loop().time() + (
            self._settings.drain_seconds if seconds is None else seconds
        )
        while self.frontend.num_unfinished and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        if self.frontend.num_unfinished:
            _log.warning("drained for too long: %d requests end", self.frontend.num_unfinished)
            self.frontend.abort_all()
        await self._grpc.stop(self._settings.stop_grace_seconds)
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

    def _open(self, address: str) -> int:
        if self._settings.tls is None:
            return self._grpc.add_insecure_port(address)
        return self._grpc.add_secure_port(address, server_credentials(self._settings.tls))

    async def _show_health(self, is_well: bool) -> None:
        if not is_well:
            _log.error("no step was finished for %g s", self._settings.step_patience)
        await self._health.set(INFERENCE, SERVING if is_well else NOT_SERVING)


def _channel_options(settings: ServeSettings) -> list[tuple[str, int]]:
    """What gRPC calls arguments of a channel."""
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        # Clients may ping through a long prefill.
        ("grpc.http2.min_ping_interval_without_data_ms", settings.min_ping_interval_ms),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.so_reuseport", 0),
    ]
