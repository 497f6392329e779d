"""A load over ``jaxinfer.v1``."""

import time
from typing import Self, Unpack

from jaxinfer.outputs import FinishReason
from jaxinfer.sampling_params import SamplingParams
from serve.client import AsyncClient, RetryPolicy
from serve.client.connection import ConnectionOptions
from serve.client.errors import ServerError
from serve.load.prompts import TokenIds
from serve.load.run import Reply


class GrpcBackend:
    """One connection; nothing is tried twice, because what fails is counted."""

    def __init__(
        self,
        target: str,
        *,
        timeout: float | None = None,
        **connection: Unpack[ConnectionOptions],
    ):
        """``timeout``: seconds for one request. ``connection``: as of ``AsyncClient``."""
        self._client = AsyncClient(target, retry=RetryPolicy(max_attempts=1), **connection)
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._client.close()

    async def model(self) -> tuple[str, int, int]:
        """Its name, the width of its logits, and its context in tokens."""
        info = await self._client.model_info()
        return info.model, info.vocab_size, info.max_model_len

    async def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(await self._client.tokenize(text))

    async def send(self, prompt: str | TokenIds, output_len: int) -> Reply:
        """
        Raises:
            ServerError: it failed, or ended before it had all its tokens.
        """
        params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=output_len)
        arrivals: list[float] = []
        token_ids: list[int] = []
        async with self._client.stream(prompt, params=params, timeout=self._timeout) as stream:
            async for event in stream:
                if event.token_ids:
                    arrivals.append(time.perf_counter())
                    token_ids += event.token_ids
        result = stream.result
        [output] = result.outputs
        if output.finish_reason not in (FinishReason.STOP, FinishReason.LENGTH):
            raise ServerError(f"it ended with {output.finish_reason}")
        return Reply(
            arrivals=tuple(arrivals),
            prompt_tokens=result.num_prompt_tokens,
            output_tokens=len(token_ids),
            token_ids=tuple(token_ids),
            cached_tokens=result.num_cached_tokens,
        )
