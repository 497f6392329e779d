"""``jaxinfer bench serve``: a server under load."""

import argparse
import asyncio
import json
import math
import sys
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxinfer.cli.arguments import new_parser
from jaxinfer.cli.printing import note, print_json
from jaxinfer.cli.remote import access, add_access_arguments
from jaxinfer.errors import InvalidParameter, Unsupported

if TYPE_CHECKING:
    from serve.load.arrivals import Ramp
    from serve.load.grpc_backend import GrpcBackend
    from serve.load.measure import LoadSettings
    from serve.load.openai_backend import OpenAIBackend
    from serve.load.prompts import Conversation

_ADDRESSES = {"grpc": "127.0.0.1:50051", "openai": "http://127.0.0.1:8000"}
_DATASETS = ("random", "sharegpt-like", "sharegpt", "prefix-repetition", "multi-turn", "file")
#: Token ids below it exist in any model of today.
_SAFE_VOCAB_SIZE = 10_000
_DEFAULT = "default: %(default)s"


def add_parser(kinds: Any, objective: Any) -> None:
    """Adds the command; ``objective`` reads a NAME:MS."""
    description = (
        "Time a server under load. Open loop (--request-rate) or closed loop (--max-concurrency); "
        "the names are those of vllm bench serve."
    )
    parser = new_parser(kinds, "serve", description, run)
    _add_server(parser)
    _add_load(parser)
    _add_dataset(parser)
    group = parser.add_argument_group("results")
    group.add_argument(
        "--goodput",
        nargs="+",
        type=objective,
        metavar="NAME:MS",
        help="also count requests that meet objectives: ttft, tpot, e2el",
    )
    group.add_argument(
        "--percentiles", type=_numbers, default=[99.0], metavar="P,P", help="default: 99"
    )
    group.add_argument("--result-file", type=Path, help="write the JSON there, too")
    group.add_argument("--plot", type=Path, metavar="PNG", help="of a sweep: latency, throughput")


def _add_server(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("server")
    group.add_argument(
        "--backend",
        choices=_ADDRESSES,
        default="grpc",
        help=f"jaxinfer.v1, or any OpenAI API; {_DEFAULT}",
    )
    group.add_argument(
        "--server", help=f"default: {_ADDRESSES['grpc']}, of openai {_ADDRESSES['openai']}"
    )
    group.add_argument(
        "--endpoint",
        default="/v1/completions",
        help=f"of openai; or /v1/chat/completions; {_DEFAULT}",
    )
    group.add_argument("--model", default="", help="of openai (default: the first one listed)")
    group.add_argument("--timeout", type=float, help="seconds for one request (default: no end)")
    add_access_arguments(group)


def _add_load(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("load")
    group.add_argument("--num-prompts", type=int, default=100, help=f"conversations; {_DEFAULT}")
    group.add_argument("--num-warmups", type=int, default=1, help=f"before the clock; {_DEFAULT}")
    group.add_argument(
        "--request-rate", type=float, default=math.inf, help=f"a second; inf: no clock; {_DEFAULT}"
    )
    group.add_argument(
        "--burstiness", type=float, default=1.0, help=f"1: Poisson; less: bursts; {_DEFAULT}"
    )
    group.add_argument("--ramp-up-strategy", choices=("linear", "exponential"))
    group.add_argument("--ramp-up-start-rps", type=float, help="rate of the first request")
    group.add_argument("--ramp-up-end-rps", type=float, help="rate of the last one")
    group.add_argument("--max-concurrency", type=int, help="requests under way at once")
    group.add_argument(
        "--sweep", type=_numbers, metavar="RATE,RATE", help="one run after the other, by rate"
    )
    group.add_argument("--seed", type=int, default=0, help=_DEFAULT)


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("prompts")
    group.add_argument(
        "--dataset",
        choices=_DATASETS,
        default="random",
        help="random ids of given or of ShareGPT-like lengths, ShareGPT's JSON file, prompts that "
        f"share prefixes, conversations, or a file of prompts; {_DEFAULT}",
    )
    group.add_argument("--dataset-path", type=Path, help="of sharegpt and file")
    group.add_argument("--output-len", type=int, default=128, help=f"of file; {_DEFAULT}")
    group.add_argument(
        "--vocab-size", type=int, help="ids are drawn below it (default: the model's, else 10000)"
    )
    for name, default in (
        ("random-input-len", 128),
        ("random-output-len", 128),
        ("random-prefix-len", 0),
        ("prefix-repetition-num-prefixes", 10),
        ("prefix-repetition-prefix-len", 256),
        ("prefix-repetition-suffix-len", 64),
        ("prefix-repetition-output-len", 128),
        ("multi-turn-num-turns", 4),
        ("multi-turn-system-len", 1024),
        ("multi-turn-user-len", 64),
        ("multi-turn-output-len", 64),
    ):
        group.add_argument(f"--{name}", type=int, default=default, help=_DEFAULT)
    group.add_argument(
        "--random-range-ratio", type=float, default=0.0, help=f"lengths vary by; {_DEFAULT}"
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    if args.plot is not None and args.sweep is None:
        raise InvalidParameter("--plot shows a sweep: give --sweep RATE,RATE,...")
    for name in ("num_prompts", "max_concurrency"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InvalidParameter(f"--{name.replace('_', '-')} {value} must be at least 1")
    try:
        from serve.load.plot import plot_sweep

        reports = asyncio.run(_measure(args))
    except ImportError as error:
        raise Unsupported(f"{error}: pip install 'jaxinfer[serve,bench]'") from error
    document = reports[0] if args.sweep is None else {"sweep": reports}
    _show(reports, document, args)
    if args.plot is not None:
        title = f"{reports[0]['model']}\nover {args.backend}, {args.dataset} prompts"
        plot_sweep(reports, args.plot, title=title)
    return 0 if all(entry["completed"] for entry in reports) else 1


async def _measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    from serve.load.measure import measure
    from serve.load.prompts import require_room

    reports = []
    async with _backend(args) as backend:
        name, vocab_size, context = await backend.model()
        for number, rate in enumerate(args.sweep or [args.request_rate]):
            # Other prompts for each rate, or the prefix cache would know them.
            conversations = await _conversations(args, backend, vocab_size, context, number)
            if context is not None:
                require_room(conversations, context)
            warmups = conversations[args.num_prompts :]
            conversations = conversations[: args.num_prompts]
            with _bar(sum(map(len, conversations))) as bar:
                figures = await measure(
                    backend,
                    conversations,
                    _settings(args, rate),
                    warmups=warmups,
                    on_end=lambda timeline, bar=bar: bar.update() if bar else None,  # type: ignore[misc]
                )
            date = datetime.now(UTC).isoformat(timespec="seconds")
            told = {"date": date, "backend": args.backend, "model": name, "dataset": args.dataset}
            reports.append(told | {"num_prompts": len(conversations)} | figures)
            if args.sweep is not None:
                note(f"rate {rate:g}: {figures['output_throughput']:,.1f} tokens/s")
    return reports


def _backend(args: argparse.Namespace) -> "GrpcBackend | OpenAIBackend":
    server = args.server or _ADDRESSES[args.backend]
    if args.backend == "grpc":
        from serve.load.grpc_backend import GrpcBackend

        return GrpcBackend(server, timeout=args.timeout, **access(args))
    from serve.load.openai_backend import CHAT, OpenAIBackend

    if args.endpoint == CHAT and args.dataset not in ("sharegpt", "file"):
        raise InvalidParameter(f"{CHAT} takes texts: --dataset {args.dataset} is made of token ids")
    token, tls_ca = access(args)["token"], args.tls_ca
    return OpenAIBackend(
        server if "://" in server else f"{'https' if args.tls or tls_ca else 'http'}://{server}",
        endpoint=args.endpoint,
        model=args.model,
        timeout=args.timeout,
        token=token,
        ca=tls_ca,
    )


def _settings(args: argparse.Namespace, rate: float) -> "LoadSettings":
    from serve.load.measure import LoadSettings

    return LoadSettings(
        rate=_ramp(args) or rate,
        burstiness=args.burstiness,
        max_concurrency=args.max_concurrency,
        objectives=dict(args.goodput or ()),
        percentiles=args.percentiles,
        seed=args.seed,
    )


def _ramp(args: argparse.Namespace) -> "Ramp | None":
    from serve.load.arrivals import Ramp

    given = (args.ramp_up_strategy, args.ramp_up_start_rps, args.ramp_up_end_rps)
    if all(value is None for value in given):
        return None
    if any(value is None for value in given) or args.sweep or args.request_rate != math.inf:
        raise InvalidParameter(
            "a ramp takes --ramp-up-strategy, --ramp-up-start-rps and --ramp-up-end-rps, and "
            "neither --request-rate nor --sweep"
        )
    return Ramp(kind=given[0], start=given[1], end=given[2])


async def _conversations(
    args: argparse.Namespace,
    backend: "GrpcBackend | OpenAIBackend",
    vocab_size: int | None,
    context: int | None,
    number: int,
) -> "list[Conversation]":
    """Those to measure, and behind them those to warm up with."""
    from serve.load import prompts

    num = args.num_prompts + args.num_warmups
    draw = prompts.Draw(args.vocab_size or vocab_size or _SAFE_VOCAB_SIZE, args.seed + number)

    def of(name: str, *lengths: str) -> dict[str, int]:
        return {length: getattr(args, f"{name}_{length}") for length in lengths}

    match args.dataset:
        case "random":
            lengths = of("random", "input_len", "output_len", "prefix_len")
            return prompts.random_prompts(num, draw, range_ratio=args.random_range_ratio, **lengths)
        case "sharegpt-like":
            return prompts.sharegpt_like(num, draw, max_len=min(2048, context or 2048))
        case "prefix-repetition":
            names = ("num_prefixes", "prefix_len", "suffix_len", "output_len")
            return prompts.prefix_repetition(num, draw, **of("prefix_repetition", *names))
        case "multi-turn":
            names = ("num_turns", "system_len", "user_len", "output_len")
            return prompts.multi_turn(num, draw, **of("multi_turn", *names))
    if args.dataset_path is None:
        raise InvalidParameter(f"--dataset {args.dataset} needs --dataset-path")
    if args.dataset == "file":
        return prompts.from_file(args.dataset_path, num=num, output_len=args.output_len)
    return await prompts.from_sharegpt(args.dataset_path, num=num, draw=draw, count=backend.count)


def _bar(total: int) -> Any:
    if not sys.stderr.isatty():
        return nullcontext()
    from tqdm import tqdm

    return tqdm(total=total, unit="request", file=sys.stderr)


def _show(
    reports: list[dict[str, Any]], document: dict[str, Any], args: argparse.Namespace
) -> None:
    if not args.json:
        for entry in reports:
            for name, value in entry.items():
                shown = f"{value:,.4g}" if isinstance(value, float) else value
                print(f"{name:<26}{shown}")
            print()
    if args.result_file is not None:
        args.result_file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print_json(document)


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]
