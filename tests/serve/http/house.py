"""A server over the fake model, and a client that speaks HTTP to it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx

from serve.settings import ServeSettings
from tests.serve.house import ServeHouse, served

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
CANARY = {"prompt": [3, 1, 4, 1, 5], "temperature": 0, "max_tokens": 12, "ignore_eos": True}
ENDLESS = {"prompt": [2, 7], "max_tokens": 3900, "ignore_eos": True}
SETTINGS = ServeSettings(grpc_port=0, http_port=0)


class HttpHouse(ServeHouse):
    """With a client."""

    client: httpx.AsyncClient

    async def post(self, body, url=COMPLETIONS, **headers) -> httpx.Response:
        return await self.client.post(url, json=body, headers=headers)

    async def text(self) -> str:
        """Of the canary."""
        response = await self.post(CANARY)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["text"]

    async def events(self, body, url=COMPLETIONS) -> list[str]:
        """What follows ``data:``."""
        async with self.client.stream("POST", url, json={**body, "stream": True}) as response:
            assert response.status_code == 200, await response.aread()
            assert response.headers["content-type"].startswith("text/event-stream")
            return [line[6:] async for line in response.aiter_lines() if line]

    async def chunks(self, body, url=COMPLETIONS) -> list[dict]:
        events = await self.events(body, url)
        assert events.pop() == "[DONE]"
        return [json.loads(event) for event in events]


@asynccontextmanager
async def http_served(
    settings: ServeSettings = SETTINGS, client: dict | None = None, **limits
) -> AsyncIterator[HttpHouse]:
    """As ``served``; ``client``: more for the ``httpx.AsyncClient``."""
    settings = replace(settings, http_port=0)
    async with served(settings, **limits) as tested:
        tested.__class__ = HttpHouse
        assert isinstance(tested, HttpHouse)
        address = {"base_url": f"http://127.0.0.1:{tested.server.http_port}", "timeout": 20}
        async with httpx.AsyncClient(**address | (client or {})) as tested.client:
            yield tested


def error_of(response: httpx.Response) -> dict:
    """In the API's form, which nothing else has."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    return error
