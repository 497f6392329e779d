"""``jaxinfer score``: how likely a model finds texts."""

import argparse
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxinfer.cli.arguments import add_model_arguments, llm_arguments, new_parser
from jaxinfer.cli.generate import read_file, read_standard_input, read_text
from jaxinfer.cli.loading import load_llm
from jaxinfer.cli.printing import print_json
from jaxinfer.errors import InvalidParameter

if TYPE_CHECKING:
    from jaxinfer.llm.score import Scorable

_DESCRIPTION = (
    "Score texts: log-probability (base e) and perplexity of a text, or of a continuation."
)


def add_parser(commands: Any, name: str) -> None:
    """Adds the command."""
    parser = new_parser(commands, name, _DESCRIPTION, run)
    parser.add_argument("text", nargs="?", help="the text; - reads it from standard input")
    parser.add_argument("--continuation", help="score this after the text instead of the text")
    parser.add_argument(
        "--file",
        help='JSON lines, each {"text": ...}, with "continuation" or without; - is standard input',
    )
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    texts = _texts(args)
    settings = {} if len(texts) > 1 else {"max_num_seqs": 2}
    with load_llm(**llm_arguments(args, **settings)) as llm:
        scores = llm.score(texts, use_tqdm=sys.stderr.isatty())
    for score in scores:
        figures = {
            "logprob": score.logprob,
            "perplexity": score.perplexity,
            "num_tokens": len(score.token_ids),
            "is_greedy": score.is_greedy,
        }
        if args.json:
            tokens = {"token_ids": score.token_ids, "token_logprobs": score.token_logprobs}
            print_json(figures | tokens)
        else:
            print("\t".join(f"{name} {value:.6g}" for name, value in figures.items()))
    return 0


def _texts(args: argparse.Namespace) -> "list[Scorable]":
    if args.file is None:
        text = read_text(args.text, None)
        return [text if args.continuation is None else (text, args.continuation)]
    if args.text is not None or args.continuation is not None:
        raise InvalidParameter("give either texts or --file, not both")
    whole = read_standard_input() if args.file == "-" else read_file(Path(args.file))
    # Not splitlines: JSON strings may hold what else ends a line of Unicode text.
    lines = io.StringIO(whole)
    return [_text_of_line(number, line) for number, line in enumerate(lines, start=1)]


def _text_of_line(number: int, line: str) -> "Scorable":
    try:
        entry = json.loads(line)
        text, continuation = entry["text"], entry.get("continuation")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidParameter(
            f'line {number} of --file is not {{"text": ...}}: {error}'
        ) from error
    return text if continuation is None else (text, continuation)
