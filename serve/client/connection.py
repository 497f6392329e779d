"""Where a server is, and how it is spoken to."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import grpc

from jaxinfer.errors import InvalidParameter

#: Name and value.
Metadata = tuple[tuple[str, str], ...]


class ConnectionOptions(TypedDict, total=False):
    """The fields of ``Connection`` but ``target``."""

    token: str | None
    tls: bool
    tls_ca: str | Path | None
    tls_certificate: str | Path | None
    tls_key: str | Path | None
    tls_server_name: str | None
    max_message_bytes: int
    keepalive_seconds: float


@dataclass(frozen=True, kw_only=True)
class Connection:
    """One server.

    Attributes:
        target: ``HOST:PORT``, or another of gRPC's names.
        token: sent with each call as ``authorization: Bearer TOKEN``. Without TLS everybody on the
            way can read it.
        tls: the server's certificate must be of an authority that this machine trusts.
        tls_ca: PEM file of the authorities that are trusted instead; turns TLS on.
        tls_certificate, tls_key: PEM files that say who the client is (mTLS); turn TLS on.
        tls_server_name: whom the certificate must name, where that is not the host.
        max_message_bytes: of one message, in and out.
        keepalive_seconds: pings when so long nothing came. Servers close connections that ping more
            often than they allow: this one, by default, every 10 s.
    """

    target: str
    token: str | None = None
    tls: bool = False
    tls_ca: str | Path | None = None
    tls_certificate: str | Path | None = None
    tls_key: str | Path | None = None
    tls_server_name: str | None = None
    max_message_bytes: int = 64 * 2**20
    keepalive_seconds: float = 30.0

    def __post_init__(self) -> None:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise InvalidParameter("mTLS needs both tls_certificate and tls_key")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable()):
            raise InvalidParameter("the token holds characters that no header can carry")

    @property
    def is_secure(self) -> bool:
        """Whether anything asks for TLS."""
        return self.tls or self.tls_ca is not None or self.tls_certificate is not None

    @property
    def credentials(self) -> grpc.ChannelCredentials | None:
        """None: in plain text.

        Raises:
            InvalidParameter: a file that cannot be read.
        """
        if not self.is_secure:
            return None
        channel = grpc.ssl_channel_credentials(
            _read(self.tls_ca), _read(self.tls_key), _read(self.tls_certificate)
        )
        if self.token is None:
            return channel
        # gRPC sends credentials of a call over TLS only, whatever becomes of the channel.
        token = grpc.access_token_call_credentials(self.token)
        return grpc.composite_channel_credentials(channel, token)

    @property
    def metadata(self) -> Metadata:
        """What each call carries besides its own."""
        if self.token is None or self.is_secure:
            return ()
        return (("authorization", f"Bearer {self.token}"),)

    @property
    def options(self) -> Iterable[tuple[str, int | str]]:
        """What gRPC calls arguments of a channel."""
        options: list[tuple[str, int | str]] = [
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.keepalive_time_ms", int(1000 * self.keepalive_seconds)),
            ("grpc.keepalive_timeout_ms", 10_000),
            # Through a long prefill nothing is sent.
            ("grpc.http2.max_pings_without_data", 0),
        ]
        if self.tls_server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.tls_server_name))
        return options


def _read(path: str | Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidParameter(f"a file for TLS cannot be read: {error}") from error
