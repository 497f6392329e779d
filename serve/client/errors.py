"""What a server answered instead of what was asked for: a class for each status.

ServerError
├── InvalidArgument      a value is wrong; the message says which are allowed
├── NotFound             no model or request of that name
├── AlreadyExists        the request id is in use
├── FailedPrecondition   a feature that this server has not, or has turned off
├── ResourceExhausted    the server is full
├── DeadlineExceeded     it would not have ended in time
├── Cancelled            somebody ended it
├── Unauthenticated      no token, or a wrong one
├── PermissionDenied     a token that may not do this
├── Unavailable          nobody listens, or the server is about to end
├── Unimplemented        the server has no such method
└── Internal             the server failed
"""

from typing import ClassVar

import grpc

from jaxinfer.errors import JaxInferError, UsageError

#: What gRPC says, with the status of that name, for a call that came while the port closed, before
#: anybody looked at it. Who cancels calls on purpose says something else: ``Aborted`` names the
#: request, clients that they did it themselves.
_NOT_LOOKED_AT = "CANCELLED"

#: In a call's trailing metadata: milliseconds after which to try again, negative: never.
PUSHBACK = "grpc-retry-pushback-ms"


class ServerError(JaxInferError):
    """A call that failed.

    Attributes:
        code: the status.
        message: what the server said.
        retry_after: seconds after which the server wants to be asked again, negative: not at all;
            None where it did not say.
    """

    default_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        retry_after: float | None = None,
    ):
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.retry_after = retry_after


class InvalidArgument(ServerError, UsageError):
    """A value is wrong; the message says which are allowed."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(ServerError):
    """No model or request of that name."""

    default_code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(ServerError):
    """The request id is in use."""

    default_code = grpc.StatusCode.ALREADY_EXISTS


class FailedPrecondition(ServerError):
    """A feature that this server has not, or has turned off."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION


class ResourceExhausted(ServerError):
    """The server is full, or the answer was not read as fast as it came."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class DeadlineExceeded(ServerError, TimeoutError):
    """It would not have ended in time, or did not."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(ServerError):
    """Somebody ended it."""

    default_code = grpc.StatusCode.CANCELLED


class Unauthenticated(ServerError):
    """No token, or a wrong one."""

    default_code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(ServerError):
    """A token that may not do this."""

    default_code = grpc.StatusCode.PERMISSION_DENIED


class Unavailable(ServerError):
    """Nobody listens there, or the server is about to end."""

    default_code = grpc.StatusCode.UNAVAILABLE


class Unimplemented(ServerError):
    """The server has no such method."""

    default_code = grpc.StatusCode.UNIMPLEMENTED


class Internal(ServerError):
    """The server failed."""

    default_code = grpc.StatusCode.INTERNAL


_CLASSES: dict[grpc.StatusCode, type[ServerError]] = {
    kind.default_code: kind
    for kind in (
        InvalidArgument,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        ResourceExhausted,
        DeadlineExceeded,
        Cancelled,
        Unauthenticated,
        PermissionDenied,
        Unavailable,
        Unimplemented,
        Internal,
    )
} | {
    grpc.StatusCode.OUT_OF_RANGE: InvalidArgument,
    grpc.StatusCode.ABORTED: Cancelled,
    grpc.StatusCode.UNKNOWN: Internal,
    grpc.StatusCode.DATA_LOSS: Internal,
}


def error_of(failed: grpc.RpcError) -> ServerError:
    """The same failure, as its class; a call that met a port while it closed is UNAVAILABLE."""
    code = failed.code()
    if code is grpc.StatusCode.CANCELLED and failed.details() == _NOT_LOOKED_AT:
        return Unavailable("the server closed its port before it looked at the call")
    return _CLASSES.get(code, ServerError)(
        failed.details() or code.name,
        code=code,
        retry_after=_retry_after(failed.trailing_metadata() or ()),
    )


def _retry_after(metadata: object) -> float | None:
    for key, value in metadata:  # type: ignore[attr-defined]  # pairs, of both kinds of calls
        if key == PUSHBACK:
            try:
                return int(value) / 1000
            except ValueError:
                return -1.0  # as gRPC's own clients read it
    return None
