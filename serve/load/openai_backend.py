"""A load over the OpenAI API: any server of it, by server-sent events."""

import json
import ssl
import time
from typing import Any, Self

import aiohttp

from jaxinfer.errors import InvalidParameter, JaxInferError
from serve.load.prompts import TokenIds
from serve.load.run import Reply

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


class OpenAIError(JaxInferError):
    """A server of the OpenAI API said no, or something that it should not."""


class OpenAIBackend:
    """A pool of connections, as many as there are requests.

    Sampling is greedy; ``ignore_eos`` is asked for, which servers such as vLLM know.
    """

    def __init__(
        self,
        base_url: str,
        *,
        endpoint: str = COMPLETIONS,
        model: str = "",
        timeout: float | None = None,
        token: str | None = None,
        ca: str | None = None,
    ):
        """
        Args:
            base_url: before ``/v1``.
            model: empty: the first that the server lists.
            ca: PEM file of the authorities that are trusted instead of this machine's.

        Raises:
            InvalidParameter: another endpoint, or a file that cannot be read.
        """
        if endpoint not in (COMPLETIONS, CHAT):
            raise InvalidParameter(f"endpoint {endpoint!r} is not {COMPLETIONS} or {CHAT}")
        self._base, self._endpoint, self._model = base_url.rstrip("/"), endpoint, model
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=_trusting(ca)),
            timeout=aiohttp.ClientTimeout(total=timeout),
            headers=headers,
        )

    async def __aenter__(self) -> Self:
        if not self._model:
            try:
                async with self._session.get(f"{self._base}/v1/models") as response:
                    await _require_success(response)
                    self._model = (await response.json())["data"][0]["id"]
            except BaseException:
                await self._session.close()
                raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._session.close()

    async def model(self) -> tuple[str, int | None, int | None]:
        """Its name; how many tokens it knows and takes, such servers do not tell."""
        return self._model, None, None

    async def count(self, text: str) -> int:
        """Tokens of a text, where the server has ``/tokenize``."""
        body = {"model": self._model, "prompt": text}
        async with self._session.post(f"{self._base}/tokenize", json=body) as response:
            await _require_success(response)
            return len((await response.json())["tokens"])

    async def send(self, prompt: str | TokenIds, output_len: int) -> Reply:
        """
        Raises:
            OpenAIError: a status, an error among the events, or no usage at their end.
            aiohttp.ClientError: the connection failed.
        """
        arrivals: list[float] = []
        usage: dict[str, Any] | None = None
        body = self._body(prompt, output_len)
        async with self._session.post(self._base + self._endpoint, json=body) as response:
            await _require_success(response)
            events = EventReader()
            async for piece in response.content.iter_any():
                now = time.perf_counter()
                for event in events.feed(piece):
                    if "error" in event:
                        raise OpenAIError(str(event["error"])[:200])
                    if has_token(event):
                        arrivals.append(now)
                    usage = event.get("usage") or usage
        if usage is None or not events.is_done:
            raise OpenAIError(
                "the stream ended without " + ("usage" if events.is_done else "[DONE]")
            )
        details = usage.get("prompt_tokens_details") or {}
        return Reply(
            arrivals=tuple(arrivals),
            prompt_tokens=usage["prompt_tokens"],
            output_tokens=usage["completion_tokens"],
            cached_tokens=details.get("cached_tokens"),
        )

    def _body(self, prompt: str | TokenIds, output_len: int) -> dict[str, Any]:
        asked: dict[str, Any] = {"prompt": prompt}
        if self._endpoint == CHAT:
            if not isinstance(prompt, str):
                raise InvalidParameter(f"{CHAT} takes texts, and this load is made of token ids")
            asked = {"messages": [{"role": "user", "content": prompt}]}
        return asked | {
            "model": self._model,
            "max_tokens": output_len,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


def has_token(event: dict[str, Any]) -> bool:
    """Whether a chunk brings a token: one with text, or one without that is neither the end nor a
    role's announcement (tokens that are part of a character have no text yet)."""
    choices = event.get("choices")
    if not choices:
        return False
    choice = choices[0]
    delta = choice.get("delta")
    if (choice.get("text") if delta is None else delta.get("content")) or (
        delta is not None and delta.get("reasoning_content")
    ):
        return True
    return choice.get("finish_reason") is None and not (delta and "role" in delta)


class EventReader:
    """Server-sent events out of pieces of bytes, wherever these were cut.

    Attributes:
        is_done: ``[DONE]`` has come.
    """

    def __init__(self) -> None:
        self._rest = b""
        self.is_done = False

    def feed(self, piece: bytes) -> list[dict[str, Any]]:
        """The events that are complete now, as what their JSON says."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        events = []
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                self.is_done = True
            else:
                events.append(json.loads(data))
        return events


def _trusting(ca: str | None) -> ssl.SSLContext | bool:
    if ca is None:
        return True
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise InvalidParameter(f"{ca} cannot be read as certificates: {error}") from error


async def _require_success(response: aiohttp.ClientResponse) -> None:
    if response.status != 200:
        text = " ".join((await response.text()).split())[:200]
        raise OpenAIError(f"HTTP {response.status}: {text}")
