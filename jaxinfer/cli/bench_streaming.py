"""``jaxinfer bench streaming``: a server's streams beside ``LLM``."""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import IO, TYPE_CHECKING, Any, NoReturn

from jaxinfer.cli.arguments import add_model_arguments, llm_arguments, new_parser, words_given
from jaxinfer.cli.loading import load_llm
from jaxinfer.cli.printing import note, show
from jaxinfer.errors import InvalidParameter, JaxInferError, Unsupported

if TYPE_CHECKING:
    from serve.load.streaming import Round

_SIZES = {
    "rounds": (24, "of one load each"),
    "num-prompts": (32, "of a load"),
    "input-len": (128, "tokens of each"),
    "output-len": (128, "tokens after each"),
    "max-concurrency": (32, "streams at once, and --max-num-seqs unless that is given"),
}
#: For Python, before the words about the model. What is under way at the end is for nobody.
_SERVE = (
    *("-m", "jaxinfer.cli", "serve", "--json"),
    *("--grpc-port=0", "--no-http", "--drain-seconds=0.1"),
)


def add_parser(kinds: Any) -> None:
    """Adds the command."""
    description = (
        "Time streams beside LLM. The same load goes by turns to LLM and, from one more process, "
        "over gRPC to a server of the same model, which the command starts. On a CPU; no prompt is "
        "cached."
    )
    parser = new_parser(kinds, "streaming", description, run)
    for name, (default, text) in _SIZES.items():
        parser.add_argument(
            f"--{name}", type=int, default=default, help=f"{text}; default: %(default)s"
        )
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    for name in _SIZES:
        if (size := getattr(args, name.replace("-", "_"))) < 1:
            raise InvalidParameter(f"--{name} {size} must be at least 1")
    if args.max_num_seqs is None:
        args.max_num_seqs = args.max_concurrency
    if args.max_num_seqs > args.max_concurrency:
        raise InvalidParameter(
            f"--max-num-seqs {args.max_num_seqs} is more than --max-concurrency "
            f"{args.max_concurrency}: LLM would compute more at once than the streams ask for"
        )
    args.no_prefix_caching = True
    try:
        from serve.load.sender import begin
    except ImportError as error:
        raise Unsupported(f"{error}: pip install 'jaxinfer[serve]'") from error

    # The client begins before there are threads of a policy that it would inherit.
    with (
        _sigterm_unwinds(),
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as clients,
    ):
        clients.submit(begin).result()
        with load_llm(**llm_arguments(args, enable_prompt_logprobs=False)) as llm:
            report = _measure(llm, args, clients)
            return show({"model": args.model, "dtype": llm.dtype} | report, as_json=args.json)


def _measure(llm: Any, args: argparse.Namespace, clients: ProcessPoolExecutor) -> dict[str, Any]:
    from jaxinfer.bench.workload import random_workload
    from serve.load.prompts import conversations_of, require_room
    from serve.load.streaming import measure_streaming

    if llm.platform != "cpu":
        raise Unsupported(
            f"{llm.platform}: this needs a device for LLM and the server at once; compare `bench "
            "throughput` with `serve` and `bench serve`"
        )
    note(str(llm.budget))
    workloads = [
        random_workload(
            args.num_prompts,
            input_len=args.input_len,
            output_len=args.output_len,
            vocab_size=llm.config.vocab_size,
            seed=number,
        )
        for number in range(args.rounds)
    ]
    require_room(conversations_of(workloads[0]), llm.max_model_len)
    with _server(words_given(args, add_model_arguments)) as target:
        try:
            return measure_streaming(
                llm,
                target,
                workloads,
                clients,
                max_concurrency=args.max_concurrency,
                on_round=_tell,
            )
        except BrokenExecutor as error:
            raise JaxInferError("the process that sends the load was ended") from error


@contextmanager
def _server(words: Sequence[str]) -> Iterator[str]:
    """The address of ``jaxinfer serve`` with these words, a process that does not outlive us.

    Raises:
        JaxInferError: it ended before the block did; with the last line that it wrote.
    """
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [sys.executable, *_SERVE, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                process.wait()
                raise JaxInferError("the server did not start")
            yield json.loads(line)["grpc"]
        except JaxInferError as error:
            if process.poll() is None:
                raise
            raise JaxInferError(f"{error}; the server ended: {_last_line(errors)}") from error
        finally:
            process.terminate()
            process.wait()  # also after an interrupt, for which Popen has no patience


def _last_line(file: IO[str]) -> str:
    file.seek(0)
    return (file.read().strip().splitlines() or ["it wrote nothing"])[-1]


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """SIGTERM leaves the block by an exception, so that what it has begun is ended."""

    def leave(signum: int, _: object) -> NoReturn:
        raise SystemExit(128 + signum)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell(each: "Round") -> None:
    ratio = f"{each.ratio:.3f} of that"
    note(f"LLM {each.offline:,.1f} tokens/s, streams {each.streamed:,.1f}: {ratio}")
