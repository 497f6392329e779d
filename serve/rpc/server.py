"""The gRPC port: services, health, reflection."""

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from serve.bounds import most_bytes
from serve.frontend import Frontend
from serve.proto import inference_pb2, inference_pb2_grpc
from serve.rpc.auth import BearerAuth
from serve.rpc.health import Health
from serve.rpc.inference import Inference
from serve.rpc.malformed import ReadSafely
from serve.rpc.tracing import TraceEntry
from serve.settings import ServeSettings, address_of
from serve.tls import TlsFiles, server_credentials
from serve.tracing import Tracing

INFERENCE = inference_pb2.DESCRIPTOR.services_by_name["Inference"].full_name
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class RpcServer:
    """Serves a frontend over gRPC, in the running event loop.

    Attributes:
        port: another than asked for where that was 0.
    """

    def __init__(self, frontend: Frontend, settings: ServeSettings, tracing: Tracing | None = None):
        self._settings = settings
        self._health = Health()
        interceptors: list[grpc.aio.ServerInterceptor] = []
        if settings.tokens:
            interceptors.append(BearerAuth(settings.tokens))
        if tracing is not None:
            interceptors.append(TraceEntry(tracing))
        self._server = grpc.aio.server(
            interceptors=[*interceptors, ReadSafely(most_bytes(frontend.max_text))],
            options=channel_options(settings, max_message_bytes=settings.max_message_bytes),
            maximum_concurrent_rpcs=settings.max_calls,
        )
        inference = Inference(
            frontend,
            deadline_margin=settings.deadline_margin,
            max_message_bytes=settings.max_message_bytes,
        )
        inference_pb2_grpc.add_InferenceServicer_to_server(inference, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (INFERENCE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self.port = 0

    async def start(self) -> None:
        """Opens the port; the engine is ready, so health says so at once.

        Raises:
            OSError: the port is taken.
        """
        address = address_of(self._settings.host, self._settings.grpc_port)
        self.port = open_port(self._server, address, self._settings.tls)
        await self._health.set("", SERVING)
        await self.show_health(True)
        await self._server.start()

    async def show_health(self, is_well: bool) -> None:
        """Whether the model answers."""
        await self._health.set(INFERENCE, SERVING if is_well else NOT_SERVING)

    async def show_draining(self) -> None:
        """From now on health says NOT_SERVING."""
        await self._health.enter_graceful_shutdown()

    async def stop(self) -> None:
        """Closes the port; calls that go on have the settings' grace."""
        await self._server.stop(self._settings.stop_grace_seconds)


def open_port(server: grpc.aio.Server, address: str, tls: TlsFiles | None) -> int:
    """The port, which is another than asked for where that was 0.

    Raises:
        OSError: it is taken.
    """
    try:
        if tls is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, server_credentials(tls))
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: {error}") from error


def channel_options(settings: ServeSettings, *, max_message_bytes: int) -> list[tuple[str, int]]:
    """What gRPC calls arguments of a channel."""
    age = {}
    if settings.max_connection_age is not None:
        age = {
            "grpc.max_connection_age_ms": int(1000 * settings.max_connection_age),
            "grpc.max_connection_age_grace_ms": int(1000 * settings.max_connection_grace),
        }
    return [
        *age.items(),
        # Beyond, a connection is closed before its first byte is read.
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.max_connection_idle_ms", int(1000 * settings.max_connection_idle)),
        # Beyond, a client's calls wait at the client, so that one has not all calls there are.
        ("grpc.max_concurrent_streams", settings.max_calls // 4),
        ("grpc.max_metadata_size", settings.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_metadata_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # Clients may ping through a long prefill.
        ("grpc.http2.min_ping_interval_without_data_ms", settings.min_ping_interval_ms),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.so_reuseport", 0),
    ]
