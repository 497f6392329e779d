"""Log-probabilities in the forms of both endpoints, and in vLLM's."""

from collections.abc import Iterable
from typing import Any

from jaxinfer.outputs import Logprob, PositionLogprobs
from jaxinfer.tokenizer import Tokenizer

#: JSON has no infinity; OpenAI writes this for what is all but impossible.
_LEAST = -9999.0


class LogprobForms:
    """Writes them for one ask.

    Where ``as_ids``, a token is called ``token_id:17`` instead of by its text, which two tokens
    may share.
    """

    def __init__(self, tokenizer: Tokenizer | None, *, num_top: int, as_ids: bool):
        self._tokenizer, self._num_top, self._as_ids = tokenizer, num_top, as_ids

    def completion(
        self,
        token_ids: Iterable[int],
        positions: Iterable[PositionLogprobs | None],
        offset: int,
    ) -> tuple[dict[str, Any], int]:
        """Of ``/v1/completions``, for a text that begins at ``offset``; where the next one does."""
        tokens: list[str] = []
        values: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for token_id, position in zip(token_ids, positions, strict=True):
            entry = None if position is None else position[token_id]
            token = self._name(token_id, entry)
            tokens.append(token)
            offsets.append(offset)
            offset += len(token)
            values.append(None if entry is None else _finite(entry.logprob))
            tops.append(None if position is None else self._top_by_name(position))
        form = {
            "tokens": tokens,
            "token_logprobs": values,
            "top_logprobs": tops,
            "text_offset": offsets,
        }
        return form, offset

    def chat(
        self, token_ids: Iterable[int], positions: Iterable[PositionLogprobs]
    ) -> list[dict[str, Any]]:
        """Of ``/v1/chat/completions``: its ``logprobs.content``."""
        return [
            self._chat_entry(token_id, position[token_id])
            | {"top_logprobs": [self._chat_entry(*each) for each in self._top(position)]}
            for token_id, position in zip(token_ids, positions, strict=True)
        ]

    def _top(self, position: PositionLogprobs) -> list[tuple[int, Logprob]]:
        ranked = sorted(position.items(), key=lambda item: item[1].rank or 0)
        return ranked[: self._num_top]

    def _top_by_name(self, position: PositionLogprobs) -> dict[str, float]:
        """The token itself, too; of two tokens with one name, the more likely one."""
        top: dict[str, float] = {}
        for token_id, entry in position.items():
            name, value = self._name(token_id, entry), _finite(entry.logprob)
            top[name] = max(value, top.get(name, value))
        return top

    def _chat_entry(self, token_id: int, entry: Logprob) -> dict[str, Any]:
        name = self._name(token_id, entry)
        spelled = name.encode() if self._tokenizer is None or self._as_ids else None
        if spelled is None and self._tokenizer is not None:
            spelled = self._tokenizer.token_bytes(token_id)
        return {"token": name, "logprob": _finite(entry.logprob), "bytes": list(spelled or b"")}

    def _name(self, token_id: int, entry: Logprob | None) -> str:
        if self._as_ids or self._tokenizer is None:
            return f"token_id:{token_id}"
        if entry is not None and entry.decoded_token is not None:
            return entry.decoded_token
        return self._tokenizer.id_to_token(token_id)


def prompt_logprobs(
    positions: Iterable[PositionLogprobs | None],
) -> list[dict[str, dict[str, Any]] | None]:
    """As vLLM writes those of a prompt: by token id, None for the first token."""
    return [
        None
        if position is None
        else {
            str(token_id): {
                "logprob": _finite(entry.logprob),
                "rank": entry.rank,
                "decoded_token": entry.decoded_token,
            }
            for token_id, entry in position.items()
        }
        for position in positions
    ]


def _finite(logprob: float) -> float:
    """Also of what is not a number."""
    return logprob if logprob > _LEAST else _LEAST
