"""``jaxinfer pull``: fetches a known model into the cache directory."""

import argparse
from typing import Any

from jaxinfer.cli.arguments import new_parser
from jaxinfer.cli.printing import print_json

_DESCRIPTION = "Fetch a known small model. It is checked by its SHA-256 and kept in your cache."


def add_parser(commands: Any, name: str) -> None:
    """Adds the command."""
    from jaxinfer.checkpoint.known import KNOWN_MODELS

    parser = new_parser(commands, name, _DESCRIPTION, run)
    known = ", ".join(f"{name} ({model.licence})" for name, model in KNOWN_MODELS.items())
    parser.add_argument("name", metavar="NAME", help=f"one of {known}")


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from jaxinfer.checkpoint.known import KNOWN_MODELS, pull

    path = pull(args.name)
    if args.json:
        model = KNOWN_MODELS[args.name]
        document = {"name": args.name, "path": str(path), "bytes": model.nbytes}
        print_json(document | {"sha256": model.sha256, "licence": model.licence})
    else:
        print(path)
    return 0
