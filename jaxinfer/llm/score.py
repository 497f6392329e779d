"""How likely a model finds a text: log-probabilities of tokens that are given, not generated."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jaxinfer.errors import InvalidPrompt
from jaxinfer.llm.prompts import Prompt, PromptLike, encode, read_prompts
from jaxinfer.outputs import RequestOutput
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.tokenizer import Tokenizer

#: A whole text, or a context and its continuation.
Scorable = PromptLike | tuple[PromptLike, PromptLike]

#: One token is generated, because every request generates one; nobody looks at it.
SCORING = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)


@dataclass(frozen=True, kw_only=True)
class Score:
    """The log-probabilities (base e) of a text's last tokens, each given all tokens before it.

    Attributes:
        token_ids: the tokens that were scored.
        token_logprobs: one a token.
        is_greedy: each token is the most likely one, so that greedy decoding would write this text.
    """

    token_ids: tuple[int, ...]
    token_logprobs: tuple[float, ...]
    is_greedy: bool

    @property
    def logprob(self) -> float:
        """Of all scored tokens together."""
        return math.fsum(self.token_logprobs)

    @property
    def perplexity(self) -> float:
        """``exp`` of the mean negative log-probability of a token."""
        return math.exp(-self.logprob / len(self.token_logprobs))


@dataclass(frozen=True, kw_only=True)
class ScoredText:
    """A text whose tokens from ``first`` on are to be scored."""

    prompt: Prompt
    first: int


def read_scorables(
    texts: Scorable | Sequence[Scorable], tokenizer: Tokenizer | None
) -> list[ScoredText]:
    """Texts to score: one, or a list of them; a pair is a context and its continuation.

    Raises:
        InvalidPrompt: of another form, or with no token to score.
    """
    if not isinstance(texts, list):
        return [_read_scorable(texts, tokenizer)]  # type: ignore[arg-type]
    return [_read_scorable(text, tokenizer) for text in texts]


def score_of(text: ScoredText, output: RequestOutput) -> Score:
    """Reads the score from what a request with ``SCORING`` brought."""
    token_ids = output.prompt_token_ids[text.first :]
    assert output.prompt_logprobs is not None
    positions = output.prompt_logprobs[text.first :]
    entries = [
        position[token]
        for token, position in zip(token_ids, positions, strict=True)
        if position is not None
    ]
    return Score(
        token_ids=token_ids,
        token_logprobs=tuple(entry.logprob for entry in entries),
        is_greedy=all(entry.rank == 1 for entry in entries),
    )


def _read_scorable(text: Scorable, tokenizer: Tokenizer | None) -> ScoredText:
    if not isinstance(text, tuple):
        return _checked(_read_one(text, tokenizer), first=1)
    if len(text) != 2:
        raise InvalidPrompt(f"a pair to score is (context, continuation), not {text!r:.100}")
    context = _read_one(text[0], tokenizer)
    if isinstance(text[0], str) and isinstance(text[1], str):
        # Together, as the model would read them: tokens may run across the border.
        whole = _read_one(text[0] + text[1], tokenizer)
        return _checked(whole, first=_common_len(context.token_ids, whole.token_ids))
    if isinstance(text[1], str):
        # In the middle of a text: nothing that a tokenizer puts at its beginning belongs here.
        rest_ids: Sequence[int] = encode(text[1], tokenizer, add_special_tokens=False)
    else:
        rest_ids = _read_one(text[1], tokenizer).token_ids
    token_ids = [*context.token_ids, *rest_ids]
    return _checked(Prompt(text=None, token_ids=token_ids), first=len(context.token_ids))


def _read_one(text: PromptLike, tokenizer: Tokenizer | None) -> Prompt:
    if not isinstance(text, str | Mapping):
        raise InvalidPrompt(
            "a text to score is a str or {'prompt_token_ids': [...]}, and a pair holds two of "
            f"them, not {text!r:.100}: give several texts as one flat list"
        )
    [prompt] = read_prompts(text, tokenizer)
    return prompt


def _checked(prompt: Prompt, first: int) -> ScoredText:
    """The first token of all has nothing before it, and so no probability."""
    first = max(first, 1)
    if first >= len(prompt.token_ids):
        raise InvalidPrompt(
            f"nothing to score in {prompt.text or prompt.token_ids!r:.100}: "
            "a text needs two tokens, a continuation one"
        )
    return ScoredText(prompt=prompt, first=first)


def _common_len(left: Sequence[int], right: Sequence[int]) -> int:
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))
