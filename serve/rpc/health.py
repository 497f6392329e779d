"""Health of services, for whoever asks once and for whoever stands by."""

import asyncio
from typing import Any

from grpc.aio import ServicerContext
from grpc_health.v1 import health, health_pb2

Status = Any  # an enum of the package's messages
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class Health(health.aio.HealthServicer):
    """The package's servicer, but that nobody waits for a reader.

    That one writes to each watch under a lock: a client that takes nothing would hold up all other
    watches, every change of a status, and so the end of the server.
    """

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[str, Status] = {"": _SERVING}
        self._is_over = False
        self._change = asyncio.Event()

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: ServicerContext
    ) -> None:
        """A service's status now, and each time that it is another."""
        last = None
        while True:
            change, status = self._change, self._told.get(request.service, _UNKNOWN)
            if status != last:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                last = status
            await change.wait()

    async def set(self, service: str, status: Status) -> None:
        """From now on it is this; after the end nothing changes."""
        if not self._is_over:
            self._tell({service: status})
        await super().set(service, status)

    async def enter_graceful_shutdown(self) -> None:
        """No service answers, for good."""
        self._is_over = True
        self._tell(dict.fromkeys(self._told, _NOT_SERVING))
        await super().enter_graceful_shutdown()

    def _tell(self, changes: dict[str, Status]) -> None:
        self._told |= changes
        # Who has read a status has the event that comes after it.
        self._change.set()
        self._change = asyncio.Event()
