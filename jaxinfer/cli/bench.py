"""``jaxinfer bench``: measures; the last line is JSON."""

import argparse
from pathlib import Path
from typing import Any

from jaxinfer.cli import bench_serve, bench_streaming
from jaxinfer.cli.arguments import (
    add_model_arguments,
    add_model_choice,
    llm_arguments,
    new_parser,
    words_given,
)
from jaxinfer.cli.loading import load_llm
from jaxinfer.cli.printing import note, show

_OBJECTIVES = ("ttft", "tpot", "e2el")


def add_parser(commands: Any, name: str) -> None:
    """Adds the command and what it can measure."""
    parser = commands.add_parser(name, help="Measure", description="Measure.")
    kinds = parser.add_subparsers(required=True, metavar="WHAT")
    _add_latency(kinds)
    _add_throughput(kinds)
    _add_startup(kinds)
    bench_serve.add_parser(kinds, _objective)
    bench_streaming.add_parser(kinds)


def _add_latency(kinds: Any) -> None:
    description = "Time one batch, alone. Also: how near a decode step is to the memory's speed."
    parser = new_parser(kinds, "latency", description, run_latency)
    _add_lengths(parser)
    parser.add_argument("--batch-size", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--num-iters", type=int, default=3, help="default: %(default)s")
    add_model_arguments(parser)


def _add_throughput(kinds: Any) -> None:
    description = "Time many requests at once. The names are those of vllm bench."
    parser = new_parser(kinds, "throughput", description, run_throughput)
    _add_lengths(parser)
    parser.add_argument("--num-prompts", type=int, help="default: 64, or all of the dataset")
    parser.add_argument(
        "--dataset",
        type=Path,
        help='prompts from a file: texts, or JSON lines {"prompt": ..., "output_len": ...}',
    )
    parser.add_argument(
        "--goodput",
        nargs="+",
        type=_objective,
        metavar="NAME:MS",
        help=f"also count requests that meet objectives: {', '.join(_OBJECTIVES)}",
    )
    add_model_arguments(parser)


def _add_startup(kinds: Any) -> None:
    description = "Time a start, phase by phase. With an empty compilation cache, and a full one."
    parser = new_parser(kinds, "startup", description, run_startup)
    add_model_choice(parser)


def _add_lengths(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input-len", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--output-len", type=int, default=128, help="default: %(default)s")


def run_latency(args: argparse.Namespace) -> int:
    """Runs ``bench latency``."""
    settings = llm_arguments(args, max_num_seqs=args.batch_size, enable_prompt_logprobs=False)
    with load_llm(**settings) as llm:
        from jaxinfer.bench.latency import measure_latency

        note(str(llm.budget))
        report = measure_latency(
            llm,
            batch_size=args.batch_size,
            input_len=args.input_len,
            output_len=args.output_len,
            num_iters=args.num_iters,
        )
        return show({"model": args.model, "dtype": llm.dtype} | report, as_json=args.json)


def run_throughput(args: argparse.Namespace) -> int:
    """Runs ``bench throughput``."""
    with load_llm(**llm_arguments(args, enable_prompt_logprobs=False)) as llm:
        from jaxinfer.bench.throughput import measure_throughput
        from jaxinfer.bench.workload import random_workload, workload_from_file

        note(str(llm.budget))
        if args.dataset is None:
            workload = random_workload(
                64 if args.num_prompts is None else args.num_prompts,
                input_len=args.input_len,
                output_len=args.output_len,
                vocab_size=llm.config.vocab_size,
            )
        else:
            workload = workload_from_file(
                args.dataset, num_prompts=args.num_prompts, output_len=args.output_len
            )
        report = measure_throughput(llm, workload, dict(args.goodput or ()))
        return show({"model": args.model, "dtype": llm.dtype} | report, as_json=args.json)


def run_startup(args: argparse.Namespace) -> int:
    """Runs ``bench startup``."""
    from jaxinfer.bench.startup import measure_startup

    report = measure_startup(words_given(args, add_model_choice))
    return show({"model": args.model} | report, as_json=args.json)


def _objective(text: str) -> tuple[str, float]:
    name, _, milliseconds = text.partition(":")
    if name not in _OBJECTIVES:
        raise argparse.ArgumentTypeError(f"{text!r}: the name is one of {', '.join(_OBJECTIVES)}")
    return name, float(milliseconds)
