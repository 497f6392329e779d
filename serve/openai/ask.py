"""What a body asks for: requests to the engine, and the form of the answer."""

from dataclasses import dataclass

from serve.frontend import Ask


@dataclass(frozen=True, kw_only=True)
class OpenAiAsk:
    """One body, read.

    Attributes:
        url: the endpoint whose form the answer has.
        id: of the answer; the engine knows a single prompt by the same, and several by it and
            their number.
        created: seconds since the epoch.
        asks: one a prompt; each has the same ``n`` outputs.
        stream: the client wants chunks.
        include_usage: the last chunk says how many tokens there were.
        continuous_usage: every chunk does.
        echo: answers begin with their prompts.
        num_logprobs: alternatives beside each token; None: no log-probabilities.
        has_output: False: nothing of what is generated is shown (``max_tokens`` was 0).
        tokens_as_ids: tokens are called ``token_id:17`` where log-probabilities name them.
        shows_token_ids: answers hold the ids of their tokens, and of the prompt's.
        shows_prompt_logprobs: answers hold the prompt's log-probabilities by token id.
    """

    url: str
    id: str
    created: int
    asks: tuple[Ask, ...]
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    echo: bool = False
    num_logprobs: int | None = None
    has_output: bool = True
    tokens_as_ids: bool = False
    shows_token_ids: bool = False
    shows_prompt_logprobs: bool = False

    @property
    def n(self) -> int:
        """Outputs of each prompt."""
        return self.asks[0].params.n
