"""What a load asks for: prompts, and how many tokens each wants."""

import json
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxinfer.bench.workload import Workload, workload_from_file
from jaxinfer.errors import InvalidParameter

TokenIds = tuple[int, ...]

#: Of the PagedAttention paper (arXiv 2309.06180): mean tokens of ShareGPT's prompts and answers.
SHAREGPT_INPUT_MEAN, SHAREGPT_OUTPUT_MEAN = 161.31, 337.99
#: Of the logarithms of its lengths; many are short, some are very long.
_INPUT_SIGMA, _OUTPUT_SIGMA = 1.3, 0.9
#: Conversations of a ShareGPT file with less or more tokens are passed over.
_LEAST, _MOST_INPUT, _MOST_TOGETHER = 4, 1024, 2048


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What somebody says, a text or token ids, and how many tokens shall answer it.

    ``stand_in``: taken for the answer in later turns where a server tells no token ids.
    """

    prompt: str | TokenIds
    output_len: int
    stand_in: TokenIds = ()


#: Each turn is asked when the one before it was answered, and what was said goes before it.
Conversation = tuple[Turn, ...]


class Draw:
    """Token ids and lengths, repeatable by their seed."""

    def __init__(self, vocab_size: int, seed: int):
        self._random = np.random.default_rng(seed)
        self._vocab_size = vocab_size

    def ids(self, length: int) -> TokenIds:
        """Uniformly drawn."""
        return tuple(self._random.integers(self._vocab_size, size=length).tolist())

    def length(self, mean: int, range_ratio: float) -> int:
        """Uniform between ``mean * (1 - range_ratio)`` and ``mean * (1 + range_ratio)``."""
        least, most = math.floor(mean * (1 - range_ratio)), math.ceil(mean * (1 + range_ratio))
        return max(1, int(self._random.integers(least, most + 1)))

    def lognormal(self, mean: float, sigma: float, *, least: int, most: int) -> int:
        """Of this mean before it is cut to the bounds."""
        drawn = self._random.lognormal(math.log(mean) - sigma**2 / 2, sigma)
        return min(max(least, round(drawn)), most)

    def shuffle(self, entries: list) -> None:
        """In place."""
        self._random.shuffle(entries)


def random_prompts(
    num: int,
    draw: Draw,
    *,
    input_len: int,
    output_len: int,
    range_ratio: float = 0.0,
    prefix_len: int = 0,
) -> list[Conversation]:
    """Drawn ids, after a prefix that all of them share."""
    _require_positive(input_len=input_len, output_len=output_len)
    if not 0 <= range_ratio < 1:
        raise InvalidParameter(f"range ratio = {range_ratio} must be at least 0 and below 1")
    prefix = draw.ids(prefix_len)
    return [
        (
            Turn(
                prompt=prefix + draw.ids(draw.length(input_len, range_ratio)),
                output_len=draw.length(output_len, range_ratio),
            ),
        )
        for _ in range(num)
    ]


def sharegpt_like(num: int, draw: Draw, *, max_len: int = _MOST_TOGETHER) -> list[Conversation]:
    """Drawn ids, of lengths such as ShareGPT's: log-normal, with its means, cut to ``max_len`` for
    prompt and answer together."""
    most_input = min(_MOST_INPUT, max_len // 2)

    def turn() -> Turn:
        input_len = draw.lognormal(SHAREGPT_INPUT_MEAN, _INPUT_SIGMA, least=_LEAST, most=most_input)
        output_len = draw.lognormal(
            SHAREGPT_OUTPUT_MEAN, _OUTPUT_SIGMA, least=_LEAST, most=max_len - input_len
        )
        return Turn(prompt=draw.ids(input_len), output_len=output_len)

    return [(turn(),) for _ in range(num)]


def prefix_repetition(
    num: int, draw: Draw, *, num_prefixes: int, prefix_len: int, suffix_len: int, output_len: int
) -> list[Conversation]:
    """Drawn ids, which share one of some prefixes, in no order."""
    _require_positive(num_prefixes=num_prefixes, suffix_len=suffix_len, output_len=output_len)
    prefixes = [draw.ids(prefix_len) for _ in range(num_prefixes)]
    conversations: list[Conversation] = [
        (Turn(prompt=prefixes[i % num_prefixes] + draw.ids(suffix_len), output_len=output_len),)
        for i in range(num)
    ]
    draw.shuffle(conversations)
    return conversations


def multi_turn(
    num: int, draw: Draw, *, num_turns: int, system_len: int, user_len: int, output_len: int
) -> list[Conversation]:
    """``num`` conversations of drawn ids, which all begin with one system prompt."""
    _require_positive(num_turns=num_turns, user_len=user_len, output_len=output_len)
    system = draw.ids(system_len)

    def turn(number: int) -> Turn:
        return Turn(
            prompt=(() if number else system) + draw.ids(user_len),
            output_len=output_len,
            stand_in=draw.ids(output_len),
        )

    return [tuple(map(turn, range(num_turns))) for _ in range(num)]


def from_file(path: Path, *, num: int | None, output_len: int) -> list[Conversation]:
    """JSON lines ``{"prompt": text or ids, "output_len": n}``; other lines are texts."""
    return conversations_of(workload_from_file(path, num_prompts=num, output_len=output_len))


def conversations_of(workload: Workload) -> list[Conversation]:
    """One of one turn for each prompt."""
    return [
        (
            Turn(
                prompt=prompt if isinstance(prompt, str) else tuple(prompt["prompt_token_ids"]),
                output_len=wanted,
            ),
        )
        for prompt, wanted in zip(workload.prompts, workload.output_lens, strict=True)
    ]


async def from_sharegpt(
    path: Path, *, num: int, draw: Draw, count: Callable[[str], Awaitable[int]]
) -> list[Conversation]:
    """The first question and answer of ShareGPT's conversations, in no order; ``count`` tells the
    tokens of a text.

    Raises:
        InvalidParameter: not that JSON, or nothing of a fitting length in it.
    """
    pairs = _sharegpt_pairs(path)
    draw.shuffle(pairs)
    found: list[Conversation] = []
    for question, answer in pairs:
        if len(found) == num:
            break
        input_len, output_len = await count(question), await count(answer)
        is_short = input_len <= _MOST_INPUT and input_len + output_len <= _MOST_TOGETHER
        if is_short and min(input_len, output_len) >= _LEAST:
            found.append((Turn(prompt=question, output_len=output_len),))
    if not found:
        raise InvalidParameter(f"{path} holds no conversation of a fitting length")
    return found


def _sharegpt_pairs(path: Path) -> list[tuple[str, str]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        turns = [[turn["value"] for turn in entry["conversations"][:2]] for entry in entries]
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidParameter(
            f'{path} is not ShareGPT\'s JSON, [{{"conversations": [{{"value": ...}}]}}]: {error!r}'
        ) from error
    return [(pair[0], pair[1]) for pair in turns if len(pair) == 2]


def _require_positive(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise InvalidParameter(f"{name} = {number} must be at least 1")


def require_room(conversations: Sequence[Conversation], max_model_len: int) -> None:
    """Refuses a load that no context of that many tokens holds; texts are for the server to count.

    Raises:
        InvalidParameter: it is too long.
    """
    for turns in conversations:
        ids = [turn.prompt for turn in turns if isinstance(turn.prompt, tuple)]
        length = sum(map(len, ids)) + sum(turn.output_len for turn in turns)
        if length > max_model_len:
            raise InvalidParameter(
                f"{length} tokens of prompt and output: the server's context has {max_model_len}"
            )
