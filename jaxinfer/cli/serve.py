"""``jaxinfer serve``: a model for clients over gRPC."""

import argparse
import asyncio
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxinfer.cli.arguments import add_model_arguments, llm_arguments, new_parser
from jaxinfer.cli.loading import load_llm
from jaxinfer.cli.printing import note, print_json
from jaxinfer.errors import InvalidParameter, Unsupported

if TYPE_CHECKING:
    from jaxinfer.llm import LLM
    from serve.settings import ServeSettings
    from serve.tls import TlsFiles

_DESCRIPTION = "Serve a model over gRPC. SIGTERM and Ctrl-C let what is under way end first."


def add_parser(commands: Any, name: str) -> None:
    """Adds the command."""
    parser = new_parser(commands, name, _DESCRIPTION, run)
    group = parser.add_argument_group("server")
    group.add_argument("--host", default="127.0.0.1", help="default: %(default)s")
    group.add_argument(
        "--grpc-port", type=int, default=50051, help="0 takes a free one (default: %(default)s)"
    )
    group.add_argument("--tls-certificate", type=Path, help="PEM; read again when it changes")
    group.add_argument("--tls-key", type=Path, help="its key, PEM")
    group.add_argument("--tls-client-ca", type=Path, help="who signs clients' certificates (mTLS)")
    group.add_argument(
        "--auth-tokens-file", type=Path, help="bearer tokens, one a line, of which calls name one"
    )
    group.add_argument("--served-model-name", help="what clients call it (default: --model)")
    group.add_argument(
        "--max-waiting-requests", type=int, default=1024, help="default: %(default)s"
    )
    group.add_argument(
        "--max-waiting-tokens", type=int, default=2**20, help="of prompts (default: %(default)s)"
    )
    group.add_argument(
        "--drain-seconds", type=float, default=30.0, help="for what is under way at the end"
    )
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    try:
        from serve.settings import ServeSettings
        from serve.tokens import read_tokens
    except ImportError as error:
        raise Unsupported(f"{error}: pip install 'jaxinfer[serve]'") from error

    settings = ServeSettings(
        host=args.host,
        grpc_port=args.grpc_port,
        tls=_tls(args),
        tokens=() if args.auth_tokens_file is None else read_tokens(args.auth_tokens_file),
        drain_seconds=args.drain_seconds,
    )
    _require_free(settings.host, settings.grpc_port)
    waiting = ("max_waiting_requests", "max_waiting_tokens")
    bounds = {name: getattr(args, name) for name in waiting}
    llm = load_llm(**llm_arguments(args, **bounds))
    note(str(llm.budget))
    if not asyncio.run(_serve(llm, args, settings)):
        return 1  # and nobody waits for the engine's thread, which may never come back
    llm.shutdown()
    return 0


def _tls(args: argparse.Namespace) -> "TlsFiles | None":
    from serve.tls import TlsFiles, server_credentials

    if args.tls_certificate is None and args.tls_key is None and args.tls_client_ca is None:
        return None
    if args.tls_certificate is None or args.tls_key is None:
        raise InvalidParameter("TLS needs both --tls-certificate and --tls-key")
    files = TlsFiles(
        certificate=args.tls_certificate, key=args.tls_key, client_ca=args.tls_client_ca
    )
    server_credentials(files)  # before a model is loaded for nothing
    return files


def _require_free(host: str, port: int) -> None:
    """Before a model is loaded for nothing."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error}") from error


async def _serve(llm: "LLM", args: argparse.Namespace, settings: "ServeSettings") -> bool:
    """Whether it served to the end."""
    from serve.model import ServedModel
    from serve.server import Server

    llm.engine.start()
    server = Server(ServedModel.of(llm, args.served_model_name or args.model), settings)
    await server.start()
    address = f"{settings.host}:{server.grpc_port}"
    if args.json:
        print_json({"grpc": address, "startup": llm.startup_seconds})
    note(f"gRPC on {address}")
    await server.serve_until_drained()
    return not server.has_failed
