"""Clients of a server of ``jaxinfer.v1``, sync and async, for people who hold no proto in hand."""

from serve.client.async_client import AsyncClient
from serve.client.client import Client
from serve.client.errors import ServerError
from serve.client.results import Generation, Load, ModelInfo, Output, Score, ServerInfo, Usage
from serve.client.retry import RetryPolicy
from serve.client.stream import AsyncStream, Stream

__all__ = [
    "AsyncClient",
    "AsyncStream",
    "Client",
    "Generation",
    "Load",
    "ModelInfo",
    "Output",
    "RetryPolicy",
    "Score",
    "ServerError",
    "ServerInfo",
    "Stream",
    "Usage",
]
