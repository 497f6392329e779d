"""What a benchmark asks for."""

import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxinfer.errors import InvalidParameter
from jaxinfer.sampling_params import SamplingParams

if TYPE_CHECKING:
    from jaxinfer.llm.prompts import PromptLike


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Prompts, and for each how many tokens follow it, whatever they are."""

    prompts: "Sequence[PromptLike]"
    output_lens: Sequence[int]

    @property
    def sampling_params(self) -> list[SamplingParams]:
        """Greedy, and past every end of sequence: each request costs what it says."""
        return [
            SamplingParams(temperature=0, ignore_eos=True, max_tokens=output_len)
            for output_len in self.output_lens
        ]


def random_workload(
    num_prompts: int, *, input_len: int, output_len: int, vocab_size: int, seed: int = 0
) -> Workload:
    """Prompts of uniformly drawn token ids, all of one length."""
    for name, value in (
        ("num_prompts", num_prompts),
        ("input_len", input_len),
        ("output_len", output_len),
    ):
        if value < 1:
            raise InvalidParameter(f"{name} = {value} must be at least 1")
    draw = random.Random(seed)
    prompts = [
        {"prompt_token_ids": [draw.randrange(vocab_size) for _ in range(input_len)]}
        for _ in range(num_prompts)
    ]
    return Workload(prompts=prompts, output_lens=[output_len] * num_prompts)


def workload_from_file(path: Path, *, num_prompts: int | None, output_len: int) -> Workload:
    """JSON lines ``{"prompt": text or ids, "output_len": n}``; lines that are no JSON are texts.

    Raises:
        InvalidParameter: not UTF-8, a line of another form, no line at all, or none wanted.
    """
    if num_prompts is not None and num_prompts < 1:
        raise InvalidParameter(f"num_prompts = {num_prompts} must be at least 1")
    try:
        whole = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidParameter(f"{path} is not UTF-8: {error}") from error
    # Not splitlines: JSON strings may hold what else ends a line of Unicode text.
    lines = (line.removesuffix("\n") for line in islice(io.StringIO(whole), num_prompts))
    entries = [_entry(path, number, line) for number, line in enumerate(lines, start=1)]
    if not entries:
        raise InvalidParameter(f"{path} holds no prompts")
    return Workload(
        prompts=[_prompt(entry["prompt"]) for entry in entries],
        output_lens=[entry.get("output_len", output_len) for entry in entries],
    )


def _entry(path: Path, number: int, line: str) -> dict[str, Any]:
    if not line.startswith("{"):
        return {"prompt": line}
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise InvalidParameter(f"{path}, line {number} is not JSON: {error}") from error
    if "prompt" not in entry:
        raise InvalidParameter(f'{path}, line {number} has no "prompt"')
    return entry


def _prompt(value: Any) -> "PromptLike":
    return {"prompt_token_ids": value} if isinstance(value, list) else value
