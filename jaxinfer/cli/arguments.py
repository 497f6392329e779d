"""Command-line arguments that several commands share."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEFAULT_MODEL = "smollm2-135m"


def new_parser(commands: Any, name: str, description: str, run: Any) -> argparse.ArgumentParser:
    """A subcommand with what every one has; its first sentence is its help."""
    parser = commands.add_parser(name, help=description.split(". ")[0], description=description)
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument("--debug", action="store_true", help="show where an error came from")
    parser.set_defaults(run=run)
    return parser


def add_model_choice(group: Any) -> None:
    """Which model, from where, in which dtype."""
    group.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help=f"a directory, a .gguf file, a hub id, or a known name (default: {DEFAULT_MODEL})",
    )
    group.add_argument("--tokenizer", help="another than the model's own")
    group.add_argument(
        "--load-format",
        default="auto",
        help="dummy: random weights for a name of configs/models or a directory with config.json",
    )
    group.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model, and how it is held."""
    group = parser.add_argument_group("model")
    add_model_choice(group)
    group.add_argument("--kv-cache-dtype", default="auto", help="the same, for the KV cache")
    group.add_argument("--max-model-len", type=int, help="prompt and output in tokens")
    group.add_argument("--max-num-seqs", type=int, help="sequences in one step")
    group.add_argument("--max-num-batched-tokens", type=int, help="tokens in one step")
    group.add_argument("--page-size", type=int, help="tokens a page of the KV cache, 8 to 256")
    group.add_argument("--num-pages", type=int, help="pages of the KV cache (default: what fits)")
    group.add_argument("--memory-utilization", type=float, help="share of the memory to use")
    group.add_argument("--no-prefix-caching", action="store_true", help="share no prompts")
    group.add_argument("--tensor-parallel-size", type=int, help="devices a layer is laid over")
    group.add_argument("--model-seed", type=int, help="for random weights, and requests without")


def llm_arguments(args: argparse.Namespace, **defaults: Any) -> dict[str, Any]:
    """What ``LLM`` takes: what was given, else ``defaults``, else its own."""
    given = {
        "tokenizer": args.tokenizer,
        "load_format": args.load_format,
        "dtype": args.dtype,
        "kv_cache_dtype": args.kv_cache_dtype,
        "max_model_len": args.max_model_len,
        "max_num_seqs": args.max_num_seqs,
        "max_num_batched_tokens": args.max_num_batched_tokens,
        "page_size": args.page_size,
        "num_pages": args.num_pages,
        "memory_utilization": args.memory_utilization,
        "enable_prefix_caching": False if args.no_prefix_caching else None,
        "tensor_parallel_size": args.tensor_parallel_size,
        "seed": args.model_seed,
    }
    given = {name: value for name, value in given.items() if value is not None}
    return {"model": args.model} | defaults | given


def words_given(args: argparse.Namespace, add: Callable[[Any], None]) -> list[str]:
    """What was given of the flags that ``add`` adds, for another command."""
    parser = argparse.ArgumentParser(add_help=False)
    add(parser)
    words = []
    for action in parser._actions:
        value = getattr(args, action.dest)
        if value != action.default:
            flag = action.option_strings[0]
            words.append(flag if action.nargs == 0 else f"{flag}={value}")
    return words


def one_request_at_a_time(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments for ``LLM`` with as few programs to compile as one request needs."""
    num_tokens = args.max_num_batched_tokens or 128
    return llm_arguments(
        args,
        max_num_seqs=min(args.n, 8),
        max_num_batched_tokens=num_tokens,
        prefill_tokens=(num_tokens,),
        enable_prompt_logprobs=args.prompt_logprobs is not None,
    )


def add_sampling_arguments(parser: argparse.ArgumentParser, *, max_tokens: int) -> None:
    """How tokens are chosen: the fields of ``SamplingParams``, greedy unless asked otherwise."""
    group = parser.add_argument_group("sampling")
    group.add_argument("--n", type=int, default=1, help="samples of the prompt")
    group.add_argument("--max-tokens", type=int, default=max_tokens, help="default: %(default)s")
    group.add_argument("--min-tokens", type=int, default=0)
    group.add_argument("--temperature", type=float, default=0.0, help="0, the default, is greedy")
    group.add_argument("--top-p", type=float, default=1.0)
    group.add_argument("--top-k", type=int, default=0)
    group.add_argument("--min-p", type=float, default=0.0)
    group.add_argument("--presence-penalty", type=float, default=0.0)
    group.add_argument("--frequency-penalty", type=float, default=0.0)
    group.add_argument("--repetition-penalty", type=float, default=1.0)
    group.add_argument("--seed", type=int)
    group.add_argument("--stop", action="append", metavar="TEXT", help="may be repeated")
    group.add_argument("--stop-token-ids", type=int, nargs="+", metavar="ID")
    group.add_argument("--ignore-eos", action="store_true")
    group.add_argument("--include-stop-str-in-output", action="store_true")
    group.add_argument("--logit-bias", type=_bias, nargs="+", metavar="ID=BIAS")
    group.add_argument("--allowed-token-ids", type=int, nargs="+", metavar="ID")
    group.add_argument("--bad-words", action="append", metavar="TEXT", help="may be repeated")
    guide = group.add_mutually_exclusive_group()
    guide.add_argument(
        "--json-schema", type=Path, metavar="FILE", help="the output is JSON of this schema"
    )
    guide.add_argument("--regex", metavar="REGEX", help="the output matches it")
    guide.add_argument(
        "--choice", action="append", metavar="TEXT", help="the output is one of them; repeat it"
    )
    guide.add_argument(
        "--grammar", type=Path, metavar="FILE", help="the output follows it (Lark or GBNF)"
    )
    group.add_argument("--logprobs", type=int, metavar="K", help="alternatives beside each token")
    group.add_argument("--prompt-logprobs", type=int, metavar="K", help="the same for the prompt")
    group.add_argument("--keep-special-tokens", action="store_true", help="show them in the text")


def sampling_params(args: argparse.Namespace) -> Any:
    """``SamplingParams`` from the command line.

    Raises:
        InvalidParameter: a value that no model would take.
    """
    from jaxinfer.sampling_params import SamplingParams

    params = SamplingParams(
        n=args.n,
        max_tokens=args.max_tokens,
        min_tokens=args.min_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        presence_penalty=args.presence_penalty,
        frequency_penalty=args.frequency_penalty,
        repetition_penalty=args.repetition_penalty,
        seed=args.seed,
        stop=args.stop,
        stop_token_ids=args.stop_token_ids,
        ignore_eos=args.ignore_eos,
        include_stop_str_in_output=args.include_stop_str_in_output,
        logit_bias=dict(args.logit_bias) if args.logit_bias else None,
        allowed_token_ids=args.allowed_token_ids,
        bad_words=args.bad_words,
        structured_outputs=_structured_outputs(args),
        logprobs=args.logprobs,
        prompt_logprobs=args.prompt_logprobs,
        skip_special_tokens=not args.keep_special_tokens,
    )
    # Once more by the engine, which knows the vocabulary; here it costs no loaded model.
    params.verify(vocab_size=2**31)
    return params


def _structured_outputs(args: argparse.Namespace) -> Any:
    from jaxinfer.structured_outputs import StructuredOutputsParams

    given = {
        "json": args.json_schema and _read(args.json_schema),
        "regex": args.regex,
        "choice": args.choice,
        "grammar": args.grammar and _read(args.grammar),
    }
    return StructuredOutputsParams(**given) if any(v is not None for v in given.values()) else None


def _read(path: Path) -> str:
    from jaxinfer.errors import InvalidParameter

    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParameter(f"{path} cannot be read: {error}") from error


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    return int(token), float(bias)
