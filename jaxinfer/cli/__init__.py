"""The ``jaxinfer`` command: one file a subcommand.

A command parses, calls what the other rooms offer, and prints: results on standard output, progress
and remarks on standard error. It exits with 0, 1 when something failed, 2 when it was used wrongly,
and 130 after an interrupt. What is heavy is imported when a command runs, not for its help.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

import jaxinfer
from jaxinfer.cli import batch, bench, chat, generate, inspect, pull, score, serve
from jaxinfer.cli.printing import note, write_utf8
from jaxinfer.errors import JaxInferError, UsageError

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130

_COMMANDS = {
    "generate": generate,
    "chat": chat,
    "score": score,
    "batch": batch,
    "serve": serve,
    "inspect": inspect,
    "pull": pull,
    "bench": bench,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; ``argv`` None is the command line's."""
    write_utf8()
    try:
        args = _parser().parse_args(argv)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else WRONG_USAGE
    try:
        status = args.run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        note("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Who read our output has gone; Python would complain again when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (JaxInferError, OSError) as error:
        if args.debug:
            traceback.print_exc()
        note(f"jaxinfer: error: {' '.join(str(error).split())}")
        return WRONG_USAGE if isinstance(error, UsageError) else FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="jaxinfer", description="LLM inference in JAX.")
    parser.add_argument("--version", action="version", version=jaxinfer.__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in _COMMANDS.items():
        command.add_parser(commands, name)
    return parser
