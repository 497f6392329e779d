"""``jaxinfer generate``: continues one text."""

import argparse
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxinfer.cli.answer import is_aborted, show_answer
from jaxinfer.cli.arguments import (
    add_model_arguments,
    add_sampling_arguments,
    new_parser,
    one_request_at_a_time,
    sampling_params,
)
from jaxinfer.cli.loading import load_llm
from jaxinfer.cli.printing import note
from jaxinfer.cli.remote import RemoteModel, add_server_arguments, open_server
from jaxinfer.errors import InvalidParameter

if TYPE_CHECKING:
    from jaxinfer.llm import LLM

_DESCRIPTION = "Continue a text. It goes to the model as it is; chat wraps it in a chat template."


def add_parser(commands: Any, name: str) -> None:
    """Adds the command."""
    parser = new_parser(commands, name, _DESCRIPTION, run)
    parser.add_argument("prompt", nargs="?", help="the text; - reads it from standard input")
    parser.add_argument("--file", type=Path, help="read the text from this file")
    add_sampling_arguments(parser, max_tokens=128)
    add_server_arguments(parser)
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    params, prompt = sampling_params(args), read_text(args.prompt, args.file)
    # Nobody comes after this prompt: its pages need not outlive it.
    settings = {"enable_prefix_caching": False} | one_request_at_a_time(args)
    opened: LLM | RemoteModel = load_llm(**settings) if args.server is None else open_server(args)
    with opened as llm:
        if not isinstance(llm, RemoteModel):
            note(str(llm.budget))
        output = show_answer(llm, llm.stream(prompt, params), as_json=args.json)
    return 130 if is_aborted(output) else 0


def read_text(text: str | None, file: Path | None) -> str:
    """The text given, or the one in a file or on standard input without its last line's end.

    Raises:
        InvalidParameter: neither or both were given, or it is not UTF-8.
    """
    if (text is None) == (file is None):
        raise InvalidParameter("give the text itself, - for standard input, or --file; one of them")
    if file is not None:
        return read_file(file).removesuffix("\n")
    return read_standard_input().removesuffix("\n") if text == "-" else str(text)


def read_standard_input() -> str:
    """All of standard input, as UTF-8 like files, whatever the locale says.

    Raises:
        InvalidParameter: it is closed, or not UTF-8.
    """
    # So Python says that the descriptor was closed when the process began.
    if sys.stdin is None:
        raise InvalidParameter("standard input is closed: give the text itself, or open it")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="strict")
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InvalidParameter(f"standard input is not UTF-8: {error}") from error


def read_file(file: Path) -> str:
    """All of a text file.

    Raises:
        InvalidParameter: it is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidParameter(f"{file} is not UTF-8: {error}") from error
