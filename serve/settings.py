"""How a server is to be run."""

from dataclasses import dataclass, field, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from jaxinfer.errors import InvalidParameter
from serve.tls import TlsFiles

#: What gRPC counts in, and milliseconds of it as seconds.
_MOST = 2**31 - 1
_MOST_SECONDS = 2_000_000.0


def bounded(default: Any, least: float, most: float) -> Any:
    """A number that may be set from ``least`` to ``most``, of the type of these; None where that is
    the default."""
    return field(default=default, metadata={"bounds": (least, most)})


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """Where it listens and what it allows; the engine has settings of its own.

    Attributes:
        host: address to listen on.
        grpc_port: 0 takes any that is free.
        http_port: the same for HTTP; None: it is not served.
        http_patience: seconds that an HTTP client has to send a request, and to take what it is
            sent; after that its connection ends.
        http_keep_alive: seconds for which an HTTP connection may have nothing to do.
        tokenizer_info: ``/tokenizer_info`` is served over HTTP. Clients that look for it and find
            it do without a tokenizer of their own, and some then fail where they have one.
        tls: None: in plain text.
        tokens: one of which each call must name; none: nobody is asked.
        admin_port: where operators are served; None: nowhere.
        admin_host: address for that; another than this machine's own only with tokens, or mTLS.
        admin_tokens: as ``tokens``, for operators; none: those, on this machine.
        weights_dir: below it lie the weights that operators may have taken; None: none.
        profile_dir: below it profiles are written; None: none are taken.
        otlp_endpoint: ``http://host:port`` of a collector of traces; None: requests are not traced.
        max_connections: of each port; fewer where the process may not have so many files.
        max_calls: of each gRPC port at once, whatever they do; of one connection a quarter of them.
        max_message_bytes: of one message, in and out.
        max_metadata_bytes: of a call, and of its answer.
        max_pending_tokens: of one stream, waiting for their reader.
        min_ping_interval_ms: clients that ping more often are sent away.
        max_connection_idle: seconds without a call, standing ones included, after which a
            connection ends, so that others have its place; at latest after twice as many. gRPC's
            clients make a new one with their next call.
        max_connection_age: seconds after which a connection is asked to end, so that balancers of
            connections see new ones; None is never. gRPC varies it by a tenth.
        max_connection_grace: seconds that its calls may then go on.
        deadline_margin: seconds before a call's deadline at which its outputs end, at most half of
            those that it leaves.
        step_patience: seconds for a step, after which health says NOT_SERVING.
        hang_patience: seconds that the device may then still take, after which the server ends.
        drain_seconds: how long requests under way may go on after SIGTERM.
        stop_grace_seconds: how long connections may linger after that.
    """

    host: str = "127.0.0.1"
    grpc_port: int = bounded(50051, 0, 65535)
    http_port: int | None = bounded(None, 0, 65535)
    http_patience: float = bounded(60.0, 0.1, _MOST_SECONDS)
    http_keep_alive: float = bounded(30.0, 0.1, _MOST_SECONDS)
    tokenizer_info: bool = False
    tls: TlsFiles | None = None
    tokens: tuple[str, ...] = field(default=(), repr=False)
    admin_port: int | None = bounded(None, 0, 65535)
    admin_host: str = "127.0.0.1"
    admin_tokens: tuple[str, ...] = field(default=(), repr=False)
    weights_dir: Path | None = None
    profile_dir: Path | None = None
    otlp_endpoint: str | None = None
    max_connections: int = bounded(4096, 1, 2**20)
    max_calls: int = bounded(8192, 4, 2**20)
    max_message_bytes: int = bounded(64 * 2**20, 2**14, _MOST)
    max_metadata_bytes: int = bounded(16 * 2**10, 1024, 2**20)
    max_pending_tokens: int = bounded(65_536, 1, _MOST)
    min_ping_interval_ms: int = bounded(10_000, 0, _MOST)
    max_connection_idle: float = bounded(600.0, 0.1, _MOST_SECONDS)
    max_connection_age: float | None = bounded(None, 0.1, _MOST_SECONDS)
    max_connection_grace: float = bounded(60.0, 0.0, _MOST_SECONDS)
    deadline_margin: float = bounded(0.1, 0.0, 60.0)
    step_patience: float = bounded(60.0, 0.01, _MOST_SECONDS)
    hang_patience: float = bounded(600.0, 0.0, _MOST_SECONDS)
    drain_seconds: float = bounded(30.0, 0.0, _MOST_SECONDS)
    stop_grace_seconds: float = bounded(1.0, 0.0, _MOST_SECONDS)

    def __post_init__(self) -> None:
        """Raises:
        InvalidParameter: names the value, what is allowed, and the fix.
        """
        for each in fields(self):
            if "bounds" in each.metadata:
                _verify(each.name, getattr(self, each.name), each.default, *each.metadata["bounds"])
        asks = self.admin_tokens or (self.tls is not None and self.tls.client_ca)
        if self.admin_port is not None and not asks and not _is_loopback(self.admin_host):
            raise InvalidParameter(
                f"admin_host = {self.admin_host!r:.100} lets every client who reaches it"
                " exchange weights and end the server: give --admin-tokens-file, or listen on"
                " 127.0.0.1"
            )


def address_of(host: str, port: int) -> str:
    """``host:port``, with brackets where the host is an address of IPv6."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def _verify(name: str, value: object, default: object, least: float, most: float) -> None:
    if value is None and default is None:
        return
    # An integer is a number of seconds, too, and True is neither.
    kind, kinds = ("an integer", int) if isinstance(least, int) else ("a number", (int, float))
    if (
        isinstance(value, bool)
        or not isinstance(value, kinds)
        or not least <= value <= most  # as NaN is not, either
    ):
        raise InvalidParameter(
            f"{name} = {value!r:.100} is not allowed: it must be {kind} from {least} to {most};"
            f" leave it out for {default}"
        )
