"""``jaxinfer bench streaming``: a server's streams beside ``LLM``."""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from jaxinfer.cli.arguments import add_model_arguments, llm_arguments, model_words, new_parser
from jaxinfer.cli.loading import load_llm
from jaxinfer.cli.printing import note, show
from jaxinfer.errors import InvalidParameter, JaxInferError, Unsupported

if TYPE_CHECKING:
    from serve.load.streaming import Round


def add_parser(kinds: Any) -> None:
    """Adds the command."""
    description = (
        "Time streams beside LLM. The same load goes by turns to LLM and, from one more process, "
        "over gRPC to a server of the same model, which the command starts. On a CPU; no prompt is "
        "cached."
    )
    parser = new_parser(kinds, "streaming", description, run)
    for name, default, text in (
        ("rounds", 24, "of one load each"),
        ("num-prompts", 32, "of a load"),
        ("input-len", 128, "tokens of each"),
        ("output-len", 128, "tokens after each"),
        ("max-concurrency", 32, "streams at once, and --max-num-seqs unless given"),
    ):
        parser.add_argument(
            f"--{name}", type=int, default=default, help=f"{text}; default: %(default)s"
        )
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    for name in ("rounds", "max_concurrency"):
        if getattr(args, name) < 1:
            flag = f"--{name.replace('_', '-')}"
            raise InvalidParameter(f"{flag} {getattr(args, name)} must be at least 1")
    args.max_num_seqs = args.max_num_seqs or args.max_concurrency
    args.no_prefix_caching = True
    try:
        from serve.load.sender import begin
        from serve.load.streaming import measure_streaming
    except ImportError as error:
        raise Unsupported(f"{error}: pip install 'jaxinfer[serve]'") from error

    # The client begins before there are threads of a policy that it would inherit.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as clients:
        clients.submit(begin).result()
        with load_llm(**llm_arguments(args, enable_prompt_logprobs=False)) as llm:
            if (platform := llm.mesh.devices.flat[0].platform) != "cpu":
                raise Unsupported(
                    f"a {platform} is for one process, and this needs two: compare "
                    "`bench throughput` with `serve` and `bench serve`"
                )
            from jaxinfer.bench.workload import random_workload

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
            with _server(model_words(args)) as target:
                report = measure_streaming(
                    llm,
                    target,
                    workloads,
                    clients,
                    max_concurrency=args.max_concurrency,
                    on_round=_tell,
                )
            return show({"model": args.model, "dtype": llm.dtype} | report, as_json=args.json)


@contextmanager
def _server(words: Sequence[str]) -> Iterator[str]:
    """The address of ``jaxinfer serve`` with these words, in a process of its own.

    Raises:
        JaxInferError: it ended before it served; with the last line that it wrote.
    """
    command = [sys.executable, "-m", "jaxinfer.cli", "serve", "--json", "--grpc-port=0"]
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            [*command, "--no-http", *words],
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
                status = process.wait()
                errors.seek(0)
                said = errors.read().strip().splitlines() or [f"exit status {status}"]
                raise JaxInferError(f"the server that was to be timed failed: {said[-1]}")
            yield json.loads(line)["grpc"]
        finally:
            process.terminate()


def _tell(each: "Round") -> None:
    ratio = f"{each.ratio:.3f} of that"
    note(f"LLM {each.offline:,.1f} tokens/s, streams {each.streamed:,.1f}: {ratio}")
