"""The service ``jaxinfer.v1.Admin``, on a port of its own.

The methods have the wire's names.
"""

from typing import Any

import grpc
from google.protobuf.message import Message
from grpc.aio import ServicerContext
from grpc_reflection.v1alpha import reflection

from serve.admin import Admin
from serve.proto import admin_pb2 as pb
from serve.proto import admin_pb2_grpc as pb_grpc
from serve.rpc.answers import answers
from serve.rpc.auth import BearerAuth
from serve.rpc.malformed import ReadSafely
from serve.rpc.server import channel_options, open_port
from serve.settings import ServeSettings, address_of

#: Of a message: a path is the longest that one has.
_MAX_BYTES = 2**16

ADMIN = pb.DESCRIPTOR.services_by_name["Admin"].full_name


class AdminServer:
    """Serves operators over gRPC, in the running event loop.

    Attributes:
        port: another than asked for where that was 0.
    """

    def __init__(self, admin: Admin, settings: ServeSettings):
        self._settings = settings
        tokens = settings.admin_tokens or settings.tokens
        auth = [BearerAuth(tokens)] if tokens else []
        self._server = grpc.aio.server(
            interceptors=[*auth, ReadSafely(_MAX_BYTES)],
            options=channel_options(settings, max_message_bytes=_MAX_BYTES),
            maximum_concurrent_rpcs=settings.max_calls,
        )
        pb_grpc.add_AdminServicer_to_server(AdminService(admin), self._server)
        reflection.enable_server_reflection((ADMIN, reflection.SERVICE_NAME), self._server)
        self.port = 0

    async def start(self) -> None:
        """Opens the port.

        Raises:
            OSError: it is taken.
        """
        assert self._settings.admin_port is not None
        address = address_of(self._settings.admin_host, self._settings.admin_port)
        self.port = open_port(self._server, address, self._settings.tls)
        await self._server.start()

    async def stop(self) -> None:
        """Closes it; calls that go on have the settings' grace."""
        await self._server.stop(self._settings.stop_grace_seconds)


class AdminService(pb_grpc.AdminServicer):
    """Reads a message, asks for what it says, and writes a message."""

    def __init__(self, admin: Admin):
        self._admin = admin

    @answers
    async def Drain(self, request: pb.DrainRequest, context: ServicerContext) -> pb.DrainResponse:  # noqa: N802
        """Begins it."""
        return pb.DrainResponse(num_unfinished=self._admin.drain(_given(request, "seconds")))

    @answers
    async def ResetPrefixCache(  # noqa: N802
        self, request: pb.ResetPrefixCacheRequest, context: ServicerContext
    ) -> pb.ResetPrefixCacheResponse:
        """From the next step on."""
        self._admin.reset_prefix_cache()
        return pb.ResetPrefixCacheResponse()

    @answers
    async def StartProfile(  # noqa: N802
        self, request: pb.StartProfileRequest, context: ServicerContext
    ) -> pb.StartProfileResponse:
        """Begins one."""
        await self._admin.start_profile(request.directory)
        return pb.StartProfileResponse()

    @answers
    async def StopProfile(  # noqa: N802
        self, request: pb.StopProfileRequest, context: ServicerContext
    ) -> pb.StopProfileResponse:
        """Ends it."""
        return pb.StopProfileResponse(directory=str(await self._admin.stop_profile()))

    @answers
    async def UpdateWeights(  # noqa: N802
        self, request: pb.UpdateWeightsRequest, context: ServicerContext
    ) -> pb.UpdateWeightsResponse:
        """When it answers, they serve."""
        await self._admin.update_weights(request.path, _given(request, "timeout_seconds"))
        return pb.UpdateWeightsResponse()

    @answers
    async def Sleep(self, request: pb.SleepRequest, context: ServicerContext) -> pb.SleepResponse:  # noqa: N802
        """When it answers, it sleeps."""
        level, timeout = _given(request, "level"), _given(request, "timeout_seconds")
        await self._admin.sleep(level, timeout)
        return pb.SleepResponse()

    @answers
    async def Wake(self, request: pb.WakeRequest, context: ServicerContext) -> pb.WakeResponse:  # noqa: N802
        """When it answers, it serves."""
        await self._admin.wake()
        return pb.WakeResponse()


def _given(message: Message, name: str) -> Any:
    """None where it was left out."""
    return getattr(message, name) if message.HasField(name) else None
