"""The answers of both endpoints: what they say is the same, how they say it is not."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from jaxinfer.outputs import FinishReason, PositionLogprobs, TokenEvent
from serve.openai.ask import OpenAiAsk
from serve.openai.logprobs import LogprobForms, prompt_logprobs
from serve.openai.reading import CHAT


class Form(Protocol):
    """Writes choices."""

    object_name: str
    chunk_name: str

    def logprobs(self, choice: "Choice", event: TokenEvent) -> Any:
        """Those of an event, of which something is shown."""

    def chunk(self, choice: "Choice", text: str, logprobs: Any) -> dict[str, Any]:
        """What an event adds, without why it ended."""

    def whole(self, choice: "Choice") -> dict[str, Any]:
        """All of a choice, without why it ended."""


class Choice:
    """One output on its way to the client.

    Attributes:
        index: among all outputs of the answer.
        text, token_ids, logprobs: what has come of it; ``logprobs`` in the form's own parts.
        offset: length of its text as log-probabilities count it.
        is_fresh: nothing of it was sent.
    """

    def __init__(self, index: int):
        self.index = index
        self.text: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs: list[Any] = []
        self.offset = 0
        self.is_fresh = True
        self.prompt_token_ids: Sequence[int] = ()
        self.prompt_logprobs: Sequence[PositionLogprobs | None] | None = None
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None


class CompletionForm:
    """Of ``/v1/completions``."""

    object_name = chunk_name = "text_completion"

    def __init__(self, ask: OpenAiAsk, forms: LogprobForms):
        self._ask, self._forms = ask, forms

    def logprobs(self, choice: Choice, event: TokenEvent) -> Any:
        token_ids: Sequence[int] = event.token_ids
        positions: Sequence[PositionLogprobs | None] = event.logprobs or ()
        if choice.is_fresh and self._ask.echo and choice.prompt_logprobs is not None:
            token_ids = (*choice.prompt_token_ids, *token_ids)
            positions = (*choice.prompt_logprobs, *positions)
        part, choice.offset = self._forms.completion(token_ids, positions, choice.offset)
        return part

    def chunk(self, choice: Choice, text: str, logprobs: Any) -> dict[str, Any]:
        return {"index": choice.index, "text": text, "logprobs": logprobs}

    def whole(self, choice: Choice) -> dict[str, Any]:
        whole = self.chunk(choice, "".join(choice.text), self._joined(choice.logprobs))
        if self._ask.shows_prompt_logprobs and choice.prompt_logprobs is not None:
            whole["prompt_logprobs"] = prompt_logprobs(choice.prompt_logprobs)
        if self._ask.shows_token_ids:
            whole["prompt_token_ids"] = list(choice.prompt_token_ids)
        return whole

    def _joined(self, parts: Sequence[Mapping[str, list]]) -> dict[str, list] | None:
        if self._ask.num_logprobs is None:
            return None
        names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        return {name: [value for part in parts for value in part[name]] for name in names}


class ChatForm:
    """Of ``/v1/chat/completions``."""

    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"

    def __init__(self, ask: OpenAiAsk, forms: LogprobForms):
        self._ask, self._forms = ask, forms

    def logprobs(self, choice: Choice, event: TokenEvent) -> Any:
        return {"content": self._forms.chat(event.token_ids, event.logprobs or ())}

    def chunk(self, choice: Choice, text: str, logprobs: Any) -> dict[str, Any]:
        delta = {"role": "assistant", "content": text} if choice.is_fresh else {"content": text}
        return {"index": choice.index, "delta": delta, "logprobs": logprobs}

    def whole(self, choice: Choice) -> dict[str, Any]:
        content = [entry for part in choice.logprobs for entry in part["content"]]
        return {
            "index": choice.index,
            "message": {"role": "assistant", "content": "".join(choice.text), "refusal": None},
            "logprobs": (
                None if self._ask.num_logprobs is None else {"content": content, "refusal": None}
            ),
        }


def form_of(ask: OpenAiAsk, forms: LogprobForms) -> Form:
    """What writes an ask's answer."""
    return ChatForm(ask, forms) if ask.url == CHAT else CompletionForm(ask, forms)
