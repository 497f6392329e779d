"""``jaxinfer batch``: a file of requests into a file of results."""

import argparse
import asyncio
import signal
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from jaxinfer.cli.arguments import add_model_arguments, llm_arguments, new_parser
from jaxinfer.cli.loading import load_llm
from jaxinfer.cli.printing import note, print_json
from jaxinfer.errors import InvalidParameter, Unsupported

if TYPE_CHECKING:
    from jaxinfer.llm import LLM
    from serve.batch.ledger import Ledger
    from serve.batch.outcome import Outcome
    from serve.batch.sink import Pipe
    from serve.batch.source import Contents, Source

FAILED = 1

_DESCRIPTION = (
    "Answer a file of requests. Lines and results have the forms of the OpenAI API's batches. "
    "After an interrupt, a full disk or a kill, the same command goes on where it was, and no "
    "result is lost or there twice; where a line was changed that has a result, it refuses to."
)


def add_parser(commands: Any, name: str) -> None:
    """Adds the command."""
    parser = new_parser(commands, name, _DESCRIPTION, run)
    parser.add_argument(
        "input",
        help='JSON lines, each {"custom_id": ..., "method": "POST", "url": '
        '"/v1/chat/completions" or "/v1/completions", "body": {...}}; - is standard input',
    )
    parser.add_argument(
        "output", help="the results; - is standard output, where nothing can be gone on with"
    )
    parser.add_argument("--overwrite", action="store_true", help="lose the results that are there")
    parser.add_argument(
        "--retry-errors", action="store_true", help="ask again where the result is an error"
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit with 1 when a result is an error, not with 0"
    )
    parser.add_argument("--served-model-name", help="what bodies call it (default: --model)")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    try:
        from serve.batch.outcome import Outcome
        from serve.batch.source import Contents, Source
    except ImportError as error:
        raise Unsupported(f"{error}: pip install 'jaxinfer[serve]'") from error

    with ExitStack() as stack:
        source = stack.enter_context(Source.open(args.input))
        _require_two_files(args, source)
        contents = Contents.of(source)
        results = _open_results(args, contents, source, stack)
        outcome = Outcome(total=len(contents.numbers), results=results)
        if outcome.num_remaining:
            with load_llm(**llm_arguments(args)) as llm:
                note(str(llm.budget))
                results.begin()
                llm.engine.start()
                asyncio.run(_answer(llm, args, source, outcome))
        else:
            results.begin()
        return _report(args, outcome)


def _require_two_files(args: argparse.Namespace, source: "Source") -> None:
    if args.output != "-" and source.is_same_file(args.output):
        raise InvalidParameter(
            f"{args.input} and {args.output} are one file: name another for the results"
        )
    if args.output == "-":
        for flag in ("json", "overwrite", "retry_errors"):
            if getattr(args, flag):
                name = flag.replace("_", "-")
                raise InvalidParameter(
                    f"--{name} is for a file of results: with - they go to standard output"
                )


def _open_results(
    args: argparse.Namespace, contents: "Contents", source: "Source", stack: ExitStack
) -> "Ledger | Pipe":
    from serve.batch.ledger import Ledger
    from serve.batch.sink import Pipe

    if args.output == "-":
        return Pipe(sys.stdout.buffer)
    ledger = stack.enter_context(
        Ledger(args.output, overwrite=args.overwrite, retry_errors=args.retry_errors)
    )
    ledger.read(contents, source.name)
    if ledger.num_torn_bytes:
        note(f"{ledger.name} ends in a part of a line, {ledger.num_torn_bytes} bytes: it goes")
    return ledger


async def _answer(
    llm: "LLM", args: argparse.Namespace, source: "Source", outcome: "Outcome"
) -> None:
    """Answers what remains, until the end or a signal."""
    from tqdm import tqdm

    from serve.batch.run import Run
    from serve.frontend import Frontend
    from serve.model import ServedModel

    model = ServedModel.of(llm, args.served_model_name or args.model)
    # Nobody is too slow to read: what waits is bounded by what is under way.
    frontend = Frontend(model, max_pending_tokens=sys.maxsize)
    bar = tqdm(
        desc="batch",
        unit="request",
        total=outcome.total,
        initial=len(outcome.results.done),
        disable=not sys.stderr.isatty(),
        file=sys.stderr,
    )
    with bar:
        going = Run(
            frontend,
            source,
            outcome.results,
            max_sequences=2 * model.engine.runner.limits.max_num_seqs,
            on_progress=bar.update,
        )

        def stop(signum: signal.Signals) -> None:
            outcome.stopped_by = signum
            going.stop()

        for signum in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(signum, stop, signum)
        began = time.monotonic()
        await going.run()
    outcome.seconds = time.monotonic() - began
    outcome.progress = going.progress
    outcome.stopped_by = going.failure or outcome.stopped_by


def _report(args: argparse.Namespace, outcome: "Outcome") -> int:
    """Says how it went; returns the exit status."""
    stopped_by = outcome.stopped_by
    if isinstance(stopped_by, BrokenPipeError):
        raise stopped_by
    if args.json:
        print_json(outcome.figures)
    note(str(outcome))
    if isinstance(stopped_by, Exception):
        note(f"jaxinfer: error: {stopped_by}; {_way_on(args)}")
        return FAILED
    if outcome.num_remaining == 0:
        return FAILED if args.strict and outcome.results.num_failed else 0
    if stopped_by is None:
        note(f"jaxinfer: error: {args.input} was changed meanwhile; {_way_on(args)}")
        return FAILED
    note(f"interrupted; {_way_on(args)}")
    return 128 + stopped_by


def _way_on(args: argparse.Namespace) -> str:
    if args.output == "-":
        return "what is done was written: leave it out of the next input"
    return f"the same command{' without --overwrite' * args.overwrite} goes on from there"
