"""``jaxinfer inspect``: what a model is made of, and what it will cost."""

import argparse
import math
from typing import TYPE_CHECKING, Any

from jaxinfer.cli.arguments import DEFAULT_MODEL, new_parser
from jaxinfer.cli.printing import gibibytes, print_json

if TYPE_CHECKING:
    from jaxinfer.llm.facts import ModelFacts, TokenizerFacts

_DESCRIPTION = "Show a model's layers, bytes and tokenizer. Its weights are not read."
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def add_parser(commands: Any, name: str) -> None:
    """Adds the command."""
    parser = new_parser(commands, name, _DESCRIPTION, run)
    parser.add_argument("model", nargs="?", default=DEFAULT_MODEL, help="default: %(default)s")
    parser.add_argument("--tokenizer", help="another than the model's own")
    parser.add_argument("--load-format", default="auto", help="dummy: look for no weights")
    parser.add_argument("--dtype", default="auto", help="of the weights once loaded")
    parser.add_argument("--kv-cache-dtype", default="auto", help="of the KV cache")
    parser.add_argument("--page-size", type=int, default=64, help="tokens a page of the KV cache")
    parser.add_argument(
        "--memory",
        type=_nbytes,
        metavar="BYTES",
        help="such as 80GiB: how long may a context be, how large a batch?",
    )
    parser.add_argument(
        "--context",
        type=_num_tokens,
        metavar="TOKENS",
        help="of each sequence of the batch (default: the longest)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from jaxinfer.llm.facts import model_facts
    from jaxinfer.llm.opening import is_architecture, open_model

    # No weights are read, and an architecture has none to look for.
    is_shape = args.load_format == "auto" and is_architecture(args.model)
    load_format = "dummy" if is_shape else args.load_format
    opened = open_model(args.model, tokenizer=args.tokenizer, load_format=load_format)
    try:
        facts = model_facts(
            opened,
            dtype=args.dtype,
            kv_dtype=args.kv_cache_dtype,
            page_size=args.page_size,
            memory_bytes=args.memory,
            context=args.context,
        )
    finally:
        opened.close()
    if args.json:
        print_json(facts)
    else:
        print("\n".join(f"{name:<16}{value}" for name, value in _rows(facts)))
    return 0


def _rows(facts: "ModelFacts") -> list[tuple[str, str]]:
    rows = [
        ("model", f"{facts.model_type}, {facts.num_layers} layers of width {facts.width}"),
        ("parameters", _parameters(facts)),
        ("vocabulary", f"{facts.vocab_size:,}"),
        ("context", f"{facts.max_len:,} tokens"),
        ("weights", ", ".join(f"{name} {gibibytes(n)}" for name, n in facts.weight_bytes.items())),
        ("dtype", facts.dtype),
    ]
    if facts.stored_weights:
        stored = ", ".join(f"{name} {count:,}" for name, count in facts.stored_weights.items())
        rows.append(("stored as", stored))
    for group in facts.groups:
        reach = "every token" if group.window is None else f"a window of {group.window:,} tokens"
        shared = group.num_layers - group.num_owners
        read = f", {shared} of them through the keys and values of another" if shared else ""
        means = " by its latent" if group.kind == "latent" else ""
        rows.append(("layers", f"{group.num_layers} see {reach}{means}{read}"))
        rows.append(
            (
                "  KV cache",
                f"{group.kv_bytes_per_token:,} bytes a token in {facts.kv_dtype}, "
                f"{gibibytes(group.page_bytes)} a page of {facts.page_size}",
            )
        )
    of_context = f"of {facts.context:,} tokens"
    rows.append(("a sequence", f"{of_context} holds {gibibytes(facts.sequence_bytes)} of pages"))
    if facts.memory_bytes is not None:
        memory = f"in {gibibytes(facts.memory_bytes)}, weights included"
        rows.append(("longest context", f"{facts.longest_context:,} tokens {memory}"))
        rows.append(("largest batch", f"{facts.largest_batch:,} sequences {of_context} {memory}"))
    rows.append(("tokenizer", _tokenizer_row(facts.tokenizer)))
    return rows


def _parameters(facts: "ModelFacts") -> str:
    if facts.num_active_params == facts.num_params:
        return f"{facts.num_params:,}"
    return f"{facts.num_params:,}, of which a token uses {facts.num_active_params:,}"


def _tokenizer_row(facts: "TokenizerFacts | None") -> str:
    if facts is None:
        return "none"
    return ", ".join(
        (
            f"{facts.vocab_size:,} tokens",
            "a chat template" if facts.has_chat_template else "no chat template",
            f"begin {facts.bos_token_id} ({'added' if facts.adds_bos else 'not added'})",
            f"ends {', '.join(map(str, facts.eos_token_ids)) or 'none'}",
        )
    )


def _nbytes(text: str) -> int:
    number = text.strip().upper().removesuffix("B").removesuffix("I")
    unit = number[-1:] if number[-1:] in _UNITS else ""
    try:
        nbytes = float(number.removesuffix(unit)) * _UNITS[unit]
    except ValueError:
        nbytes = math.nan
    if not 0 <= nbytes < math.inf:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of bytes: it must be 0 or more, with K, M, G or T behind it"
            " for powers of 1024, such as 80GiB"
        )
    return int(nbytes)


def _num_tokens(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens: it must be 1 or more")
    return number
