"""A load from a process of its own, which loads no more than a client does."""

import asyncio
from typing import Any

from jaxinfer.bench.workload import Workload
from serve.load.grpc_backend import GrpcBackend
from serve.load.measure import LoadSettings, measure
from serve.load.prompts import Turn, conversations_of


def begin() -> None:
    """Does nothing; the process has begun."""


def send(target: str, workload: Workload, max_concurrency: int) -> dict[str, Any]:
    """The figures of a closed loop of streams over one connection, after one that opens it."""
    conversations = conversations_of(workload)
    opening = (Turn(prompt=conversations[0][0].prompt, output_len=1),)

    async def measured() -> dict[str, Any]:
        async with GrpcBackend(target) as backend:
            settings = LoadSettings(max_concurrency=max_concurrency)
            return await measure(backend, conversations, settings, warmups=[opening])

    return asyncio.run(measured())
