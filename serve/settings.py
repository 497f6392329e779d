"""How a server is to be run."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Where it listens and what it allows; the engine has settings of its own.

    Attributes:
        host: address to listen on.
        grpc_port: 0 takes any that is free.
        max_message_bytes: of one message, in and out.
        max_pending_tokens: of one stream, waiting for their reader.
        min_ping_interval_ms: clients that ping more often are sent away.
        deadline_margin: seconds before a call's deadline at which its outputs end.
        drain_seconds: how long requests under way may go on after SIGTERM.
        stop_grace_seconds: how long connections may linger after that.
    """

    host: str = "127.0.0.1"
    grpc_port: int = 50051
    max_message_bytes: int = 64 * 2**20
    max_pending_tokens: int = 65_536
    min_ping_interval_ms: int = 10_000
    deadline_margin: float = 0.02
    drain_seconds: float = 30.0
    stop_grace_seconds: float = 1.0
