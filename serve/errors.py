"""What a server says no with, besides what the engine does."""

from jaxinfer.errors import JaxInferError


class NotFound(JaxInferError):
    """No model or request of that name."""


class Forbidden(JaxInferError):
    """Somebody who may call may not do this."""


class Draining(JaxInferError):
    """The server takes no new requests, because it is about to end."""


class SlowReader(JaxInferError):
    """Too much of a stream waited to be read."""


class TooLarge(JaxInferError):
    """More bytes than a message may have."""


class Unauthenticated(JaxInferError):
    """The call names no token, or a wrong one."""


class Aborted(JaxInferError):
    """Somebody ended the request before it had an answer."""
