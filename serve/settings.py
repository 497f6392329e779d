"""How a server is to be run."""

from dataclasses import dataclass

from serve.tls import TlsFiles


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Where it listens and what it allows; the engine has settings of its own.

    Attributes:
        host: address to listen on.
        grpc_port: 0 takes any that is free.
        tls: None: in plain text.
        tokens: one of which each call must name; none: nobody is asked.
        max_message_bytes: of one message, in and out.
        max_pending_tokens: of one stream, waiting for their reader.
        min_ping_interval_ms: clients that ping more often are sent away.
        deadline_margin: seconds before a call's deadline at which its outputs end.
        step_patience: seconds for a step, after which health says NOT_SERVING.
        hang_patience: seconds that the device may then still take, after which the server ends.
        drain_seconds: how long requests under way may go on after SIGTERM.
        stop_grace_seconds: how long connections may linger after that.
    """

    host: str = "127.0.0.1"
    grpc_port: int = 50051
    tls: TlsFiles | None = None
    tokens: tuple[str, ...] = ()
    max_message_bytes: int = 64 * 2**20
    max_pending_tokens: int = 65_536
    min_ping_interval_ms: int = 10_000
    deadline_margin: float = 0.1
    step_patience: float = 60.0
    hang_patience: float = 600.0
    drain_seconds: float = 30.0
    stop_grace_seconds: float = 1.0
