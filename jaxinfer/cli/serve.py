"""``jaxinfer serve``: a model for clients over gRPC and HTTP."""

import argparse
import asyncio
import socket
import time
from typing import TYPE_CHECKING, Any

from jaxinfer.cli.arguments import llm_arguments, new_parser
from jaxinfer.cli.loading import load_llm
from jaxinfer.cli.printing import note, print_json
from jaxinfer.cli.process_clock import process_started_at
from jaxinfer.cli.serve_flags import add_flags, fill_from_file, request_limits, serve_settings
from jaxinfer.errors import Unsupported

if TYPE_CHECKING:
    from jaxinfer.llm import LLM
    from serve.settings import ServeSettings

_DESCRIPTION = (
    "Serve a model over gRPC and HTTP. SIGTERM and Ctrl-C let what is under way end first."
)


def add_parser(commands: Any, name: str) -> None:
    """Adds the command."""
    add_flags(new_parser(commands, name, _DESCRIPTION, run))


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    try:
        import serve.server  # noqa: F401
    except ImportError as error:
        raise Unsupported(f"{error}: pip install 'jaxinfer[serve]'") from error

    fill_from_file(args)
    settings = serve_settings(args)
    limits = request_limits(args)
    for port in (settings.grpc_port, settings.http_port):
        if port is not None:
            _require_free(settings.host, port)
    if settings.admin_port is not None:
        _require_free(settings.admin_host, settings.admin_port)
    waiting = ("max_waiting_requests", "max_waiting_tokens")
    bounds = {name: getattr(args, name) for name in waiting}
    llm = load_llm(**llm_arguments(args, request_limits=limits, **bounds))
    note(str(llm.budget))
    phases = ", ".join(f"{name} {spent:.1f} s" for name, spent in llm.startup_seconds.items())
    note(f"loaded after {time.monotonic() - process_started_at():.1f} s: {phases}")
    if not asyncio.run(_serve(llm, args, settings)):
        return 1  # and nobody waits for the engine's thread, which may never come back
    llm.shutdown()
    return 0


def _require_free(host: str, port: int) -> None:
    """Before a model is loaded for nothing."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error}") from error


async def _serve(llm: "LLM", args: argparse.Namespace, settings: "ServeSettings") -> bool:
    """Whether it served to the end."""
    from serve.model import ServedModel
    from serve.server import Server
    from serve.settings import address_of

    llm.engine.start()
    server = Server(ServedModel.of(llm, args.served_model_name or args.model), settings)
    await server.start()
    # Who reads that it is there may send a signal at once.
    serving = asyncio.ensure_future(server.serve_until_drained())
    await asyncio.sleep(0)
    addresses = {"grpc": address_of(settings.host, server.grpc_port)}
    if server.http_port is not None:
        addresses["http"] = address_of(settings.host, server.http_port)
    if server.admin_port is not None:
        addresses["admin"] = address_of(settings.admin_host, server.admin_port)
    if args.json:
        print_json({**addresses, "startup": llm.startup_seconds})
    names = {"grpc": "gRPC", "http": "HTTP", "admin": "Admin"}
    note(", ".join(f"{names[kind]} on {address}" for kind, address in addresses.items()))
    await serving
    return not server.has_failed
