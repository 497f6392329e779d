"""How likely the model finds a text that somebody else wrote."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxinfer.errors import DeadlinePassed
from jaxinfer.outputs import FinishReason, RequestOutput, TokenEvent, gather_events
from serve.errors import Aborted
from serve.frontend import Ask, Frontend

if TYPE_CHECKING:
    from jaxinfer.llm import Score

#: A text, or token ids.
Text = str | Sequence[int]


@dataclass(frozen=True, kw_only=True)
class ScoreAsk:
    """A text to score, or a prompt and its continuation, of which the latter is scored.

    The other fields are those of ``Ask``.
    """

    prompt: Text
    continuation: Text | None = None
    request_id: str = ""
    model: str = ""
    priority: int = 0
    timeout: float | None = None


async def score(frontend: Frontend, ask: ScoreAsk) -> tuple["Score", RequestOutput]:
    """The score, and the output that it was read from.

    Raises:
        InvalidPrompt: nothing to score.
        DeadlinePassed, Aborted, StepFailed: it ended too soon.
        JaxInferError: as ``Frontend.generate``.
    """
    # Here, because it brings jax along; the process of a server has it anyhow.
    from jaxinfer.llm.score import SCORING, read_scorables, score_of

    def read():
        forms = [
            part if isinstance(part, str) else {"prompt_token_ids": list(part)} for part in parts
        ]
        scorable = forms[0] if len(forms) == 1 else tuple(forms)
        return read_scorables(scorable, frontend.model.tokenizer)[0]

    frontend.require_model(ask.model)
    parts = [ask.prompt] if ask.continuation is None else [ask.prompt, ask.continuation]
    for part in parts:
        frontend.require_room(part)
    text = await asyncio.to_thread(read)
    request = Ask(
        prompt=text.prompt.token_ids,
        params=SCORING,
        request_id=ask.request_id,
        priority=ask.priority,
        timeout=ask.timeout,
    )
    stream = await frontend.generate(request)
    try:
        events = [event async for batch in stream for event in batch]
    finally:
        stream.close()
    _require_whole(events[-1])
    output = gather_events(
        events,
        request_id=stream.request.request_id,
        prompt=text.prompt.text,
        prompt_token_ids=text.prompt.token_ids,
    )
    return score_of(text, output), output


def _require_whole(last: TokenEvent) -> None:
    match last.finish_reason:
        case FinishReason.DEADLINE:
            raise DeadlinePassed("the deadline has passed before the text was scored")
        case FinishReason.ABORT:
            raise Aborted(f"request_id {last.request_id!r} was aborted")
    if last.failure is not None:
        raise last.failure
