"""Certificates, read again when their files change."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from jaxinfer.errors import InvalidParameter


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """PEM files. ``client_ca``: clients must show a certificate that it has signed (mTLS)."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of them."""
        both = (self.certificate, self.key)
        return both if self.client_ca is None else (*both, self.client_ca)


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """What a port is opened with. Each new connection sees the files as they are then; where they
    cannot be read, or are half written, as they were.

    Raises:
        InvalidParameter: a file cannot be read now.
    """
    seen = _stamps(files)

    def changed() -> grpc.ServerCertificateConfiguration | None:
        nonlocal seen
        try:
            stamps = _stamps(files)
            if stamps == seen:
                return None
            configuration = _configuration(files)
        except InvalidParameter:
            return None
        seen = stamps
        return configuration

    return grpc.dynamic_ssl_server_credentials(
        _configuration(files), changed, require_client_authentication=files.client_ca is not None
    )


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """The same for sockets of Python's.

    Raises:
        InvalidParameter: a file cannot be read now, or is none of PEM.
    """
    seen, current = _stamps(files), _context(files)

    def changed(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Called at the beginning of each handshake."""
        nonlocal seen, current
        try:
            stamps = _stamps(files)
            if stamps != seen:
                current, seen = _context(files), stamps
        except InvalidParameter:
            pass
        connection.context = current

    context = _context(files)
    context.sni_callback = changed
    return context


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(files.certificate, files.key)
        if files.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(files.client_ca)
    except OSError as error:  # also of what is no certificate
        raise InvalidParameter(f"a file for TLS cannot be read: {error}") from error
    return context


def _stamps(files: TlsFiles) -> list[tuple[int, int]]:
    try:
        return [(stat.st_mtime_ns, stat.st_size) for stat in (p.stat() for p in files.paths)]
    except OSError as error:
        raise InvalidParameter(f"a file for TLS cannot be read: {error}") from error


def _configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    try:
        pair = (files.key.read_bytes(), files.certificate.read_bytes())
        roots = None if files.client_ca is None else files.client_ca.read_bytes()
    except OSError as error:
        raise InvalidParameter(f"a file for TLS cannot be read: {error}") from error
    return grpc.ssl_server_certificate_configuration([pair], root_certificates=roots)
