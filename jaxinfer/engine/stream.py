"""One output as its reader sees it: text, stop strings and log-probabilities of its tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxinfer.engine.step import Finish, PromptLogprobs, StepResult
from jaxinfer.outputs import FinishReason, Logprob, PositionLogprobs
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.tokenizer import IncrementalDecoder, StopMatcher, Tokenizer


@dataclass(frozen=True, kw_only=True)
class Delta:
    """What some tokens add to an output. ``num_kept``: those up to the end of a stop string."""

    num_kept: int
    text: str
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


class OutputStream:
    """Turns the tokens of one sequence into text and finds where a stop string ends it.

    Without a tokenizer, or with ``detokenize=False``, the text stays empty.
    """

    def __init__(self, params: SamplingParams, tokenizer: Tokenizer | None):
        self._params = params
        self._num_tokens = 0
        self._decoder = None
        if tokenizer is not None and params.detokenize:
            self._decoder = IncrementalDecoder(
                tokenizer, skip_special_tokens=params.skip_special_tokens, continues_text=True
            )
        self._matcher = StopMatcher(params.stop_strings, params.include_stop_str_in_output)

    def push(
        self, token_ids: Sequence[int], finish: Finish = Finish.NOT, *, is_complete: bool = False
    ) -> Delta:
        """Takes the next tokens; ``finish`` says whether and why the last one ends the output.

        ``is_complete``: so it does, because nothing may follow; it is part of the text.
        """
        text = ""
        for position, token in enumerate(token_ids):
            ends_here = finish is Finish.STOP and position == len(token_ids) - 1
            piece, stop = self._push_token(token, is_stop_token=ends_here)
            text += piece
            if stop is not None:
                return Delta(
                    num_kept=position + 1,
                    text=text,
                    finish_reason=FinishReason.STOP,
                    stop_reason=stop,
                )
        if finish is Finish.NOT and not is_complete:
            return Delta(num_kept=len(token_ids), text=text)
        is_stop = finish is Finish.STOP
        last = token_ids[-1] if is_stop else None
        return Delta(
            num_kept=len(token_ids),
            text=text + self.flush(),
            finish_reason=FinishReason.STOP if is_stop or is_complete else FinishReason.LENGTH,
            stop_reason=last if last in tuple(self._params.stop_token_ids or ()) else None,
        )

    def flush(self) -> str:
        """What was held back; the output is over."""
        if self._decoder is None:
            return ""
        text, _ = self._matcher.push(self._decoder.flush())
        return text + self._matcher.flush()

    def _push_token(self, token: int, *, is_stop_token: bool) -> tuple[str, str | None]:
        self._num_tokens += 1
        is_hidden = is_stop_token and not self._params.include_stop_str_in_output
        if self._decoder is None or is_hidden:
            return "", None
        piece = self._decoder.push([token])
        if self._num_tokens <= self._params.min_tokens:
            return piece, None
        return self._matcher.push(piece)


class LogprobTable:
    """Log-probabilities by token id, with the tokens' texts where there is a tokenizer."""

    def __init__(self, tokenizer: Tokenizer | None):
        self._tokenizer = tokenizer

    def of_row(
        self, result: StepResult, slot: int, token_ids: Sequence[int], num_alternatives: int
    ) -> tuple[PositionLogprobs, ...]:
        """Of the tokens that a slot sampled in a step."""
        assert result.logprob_JS is not None
        assert result.rank_JS is not None
        assert result.top_ids_JSA is not None
        assert result.top_logprobs_JSA is not None
        return tuple(
            self._position(
                token,
                result.logprob_JS[j, slot],
                result.rank_JS[j, slot],
                result.top_ids_JSA[j, slot, :num_alternatives],
                result.top_logprobs_JSA[j, slot, :num_alternatives],
            )
            for j, token in enumerate(token_ids)
        )

    def of_prompt(
        self, targets: np.ndarray, logprobs: PromptLogprobs, num_alternatives: int
    ) -> list[PositionLogprobs]:
        """Of a chunk of prompt tokens."""
        return [
            self._position(
                int(token),
                logprobs.logprob_C[c],
                logprobs.rank_C[c],
                logprobs.top_ids_CA[c, :num_alternatives],
                logprobs.top_logprobs_CA[c, :num_alternatives],
            )
            for c, token in enumerate(targets)
        ]

    def _position(
        self,
        token: int,
        logprob: float,
        rank: int,
        top_ids_A: np.ndarray,
        top_logprobs_A: np.ndarray,
    ) -> PositionLogprobs:
        """The token itself first, then the most likely ones."""
        entries = {token: (float(logprob), int(rank))}
        tops = zip(top_ids_A.tolist(), top_logprobs_A.tolist(), strict=True)
        for place, (top, value) in enumerate(tops, start=1):
            entries.setdefault(top, (value, place))
        return {
            token_id: Logprob(logprob=value, rank=place, decoded_token=self._text(token_id))
            for token_id, (value, place) in entries.items()
        }

    def _text(self, token_id: int) -> str | None:
        return None if self._tokenizer is None else self._tokenizer.id_to_token(token_id)
