"""What bodies of the OpenAI API mean, and what answers look like; no sockets here."""

from serve.openai.answers import answer, stream, stream_batches
from serve.openai.ask import OpenAiAsk
from serve.openai.errors import error_body
from serve.openai.reading import ENDPOINTS, read_body

__all__ = [
    "ENDPOINTS",
    "OpenAiAsk",
    "answer",
    "error_body",
    "read_body",
    "stream",
    "stream_batches",
]
