"""An exception of a method becomes the status that the table says."""

import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from grpc.aio import ServicerContext

from jaxinfer.errors import StepFailed
from serve.rpc.malformed import Malformed
from serve.statuses import message_of, status_of

_log = logging.getLogger(__name__)


def answers(method: Callable[[Any, Any, ServicerContext], Awaitable[Any]]) -> Callable[..., Any]:
    """For a method that returns its one answer, or writes several of them."""

    @functools.wraps(method)
    async def answered(servicer: Any, request: Any, context: ServicerContext) -> Any:
        if isinstance(request, Malformed):
            await request.refuse(context)
        try:
            return await method(servicer, request, context)
        except Exception as error:
            await _refuse(error, context)

    return answered


async def _refuse(error: Exception, context: ServicerContext) -> None:
    if isinstance(error, grpc.aio.BaseError):  # it has said so already, or nobody listens
        raise error
    status = status_of(error)
    if status.grpc is grpc.StatusCode.INTERNAL and not isinstance(error, StepFailed):
        _log.error("a request failed", exc_info=error)  # of failed steps the engine tells
    await context.abort(status.grpc, message_of(error), status.metadata)
