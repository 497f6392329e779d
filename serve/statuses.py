"""Which answer an exception becomes: one table for both protocols."""

from dataclasses import dataclass
from itertools import accumulate

import grpc

from jaxinfer.errors import (
    Asleep,
    CapacityError,
    CheckpointError,
    DeadlinePassed,
    DuplicateRequest,
    EngineClosed,
    ModelNotFound,
    StepFailed,
    UnsatisfiableGuide,
    Unsupported,
    UsageError,
)
from serve.errors import (
    Aborted,
    Draining,
    Forbidden,
    NotFound,
    SlowReader,
    TooLarge,
    Unauthenticated,
)

Code = grpc.StatusCode

#: Characters of a message to a client.
MAX_MESSAGE = 1000
#: Bytes of it as gRPC writes it. Clients may refuse an answer with more than 8,192 bytes of
#: headers, and then do not see the message at all.
MAX_MESSAGE_BYTES = 6000


@dataclass(frozen=True)
class Status:
    """``kind``: the error's type in the OpenAI API. ``pushback_ms``: when to try again."""

    grpc: grpc.StatusCode
    http: int
    kind: str
    pushback_ms: int | None = None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What gRPC clients that retry look for."""
        if self.pushback_ms is None:
            return ()
        return (("grpc-retry-pushback-ms", str(self.pushback_ms)),)


#: The first class that an exception is an instance of.
_TABLE: tuple[tuple[type[Exception], Status], ...] = (
    (UsageError, Status(Code.INVALID_ARGUMENT, 400, "invalid_request_error")),
    (NotFound, Status(Code.NOT_FOUND, 404, "not_found_error")),
    (ModelNotFound, Status(Code.NOT_FOUND, 404, "not_found_error")),
    (CheckpointError, Status(Code.INVALID_ARGUMENT, 400, "invalid_request_error")),
    (Forbidden, Status(Code.PERMISSION_DENIED, 403, "permission_error")),
    (DuplicateRequest, Status(Code.ALREADY_EXISTS, 409, "conflict_error")),
    (Unsupported, Status(Code.FAILED_PRECONDITION, 400, "invalid_request_error")),
    (TooLarge, Status(Code.RESOURCE_EXHAUSTED, 413, "invalid_request_error")),
    (Unauthenticated, Status(Code.UNAUTHENTICATED, 401, "authentication_error")),
    (UnsatisfiableGuide, Status(Code.FAILED_PRECONDITION, 400, "invalid_request_error")),
    (SlowReader, Status(Code.RESOURCE_EXHAUSTED, 429, "rate_limit_error")),
    (CapacityError, Status(Code.RESOURCE_EXHAUSTED, 429, "rate_limit_error", 1000)),
    (DeadlinePassed, Status(Code.DEADLINE_EXCEEDED, 504, "timeout_error")),
    (TimeoutError, Status(Code.DEADLINE_EXCEEDED, 504, "timeout_error")),
    (Aborted, Status(Code.CANCELLED, 499, "request_cancelled")),
    (Draining, Status(Code.UNAVAILABLE, 503, "service_unavailable_error")),
    (Asleep, Status(Code.UNAVAILABLE, 503, "service_unavailable_error")),
    (EngineClosed, Status(Code.UNAVAILABLE, 503, "service_unavailable_error")),
    (StepFailed, Status(Code.INTERNAL, 500, "internal_error")),
    (Exception, Status(Code.INTERNAL, 500, "internal_error")),
)


def status_of(error: Exception) -> Status:
    """The status that a client is told."""
    return next(status for kind, status in _TABLE if isinstance(error, kind))


def message_of(error: Exception) -> str:
    """What a client is told in words, of a length that fits into headers; of our own failures only
    their kind."""
    if status_of(error).grpc is Code.INTERNAL and not isinstance(error, StepFailed):
        return f"internal error ({type(error).__name__})"
    # Half a surrogate pair, which JSON can spell, is in no message.
    text = str(error).encode("utf-8", "replace").decode()
    return _short(" ".join(text.split())[:MAX_MESSAGE])


def _short(message: str) -> str:
    """As much of it as may be sent."""
    sizes = accumulate(map(_num_bytes, message))
    return message[: sum(size <= MAX_MESSAGE_BYTES for size in sizes)]


def _num_bytes(character: str) -> int:
    """What gRPC makes of it: ``%`` and two digits of each byte that is no printable ASCII."""
    if " " <= character <= "~" and character != "%":
        return 1
    return 3 * len(character.encode())
