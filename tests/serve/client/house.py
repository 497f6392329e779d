"""Both clients behind one face, and a server that answers as it is told."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import pytest

from serve.client import AsyncClient, Client, RetryPolicy
from serve.proto import inference_pb2 as pb
from serve.proto import inference_pb2_grpc as pb_grpc

#: Tries again at once.
QUICK = RetryPolicy(initial_backoff=0.001, max_backoff=0.001)


class SyncFace:
    """The client for threads, in one."""

    def __init__(self, target, **options):
        self.client = Client(target, **options)

    async def ask(self, name, *args, **options):
        return await asyncio.to_thread(getattr(self.client, name), *args, **options)

    async def stream(self, *args, **options):
        """The stream, at its end."""

        def read():
            stream = self.client.stream(*args, **options)
            return list(stream), stream

        return await asyncio.to_thread(read)

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc_info):
        self.client.close()


class AsyncFace:
    """The client for event loops."""

    def __init__(self, target, **options):
        self.client = AsyncClient(target, **options)

    async def ask(self, name, *args, **options):
        return await getattr(self.client, name)(*args, **options)

    async def stream(self, *args, **options):
        stream = self.client.stream(*args, **options)
        return [event async for event in stream], stream

    async def __aenter__(self):
        return self

    async def __aexit__(self, *exc_info):
        await self.client.close()


both_clients = pytest.mark.parametrize("face", [SyncFace, AsyncFace])


class Refusal(Exception):
    """A status, and with it perhaps when to come back."""

    def __init__(self, code: str, pushback: str | None = None, words: str = "as the script says"):
        self.code, self.words = grpc.StatusCode[code], words
        self.metadata = () if pushback is None else (("grpc-retry-pushback-ms", pushback),)


class Scripted(pb_grpc.InferenceServicer):
    """Does with call after call what the script says: refuses it, or tells events and may refuse
    then."""

    def __init__(self, *script):
        self.script = list(script)
        self.requests = []
        self.metadata = []
        self.aborted = []
        self.cancelled = threading.Event()

    def GenerateStream(self, request, context):  # noqa: N802
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        context.add_callback(lambda: self.cancelled.set() if not context.is_active() else None)
        for step in self.script.pop(0):
            if isinstance(step, Refusal):
                context.set_trailing_metadata(step.metadata)
                context.abort(step.code, step.words)
            yield step

    def Generate(self, request, context):  # noqa: N802
        response = pb.GenerateResponse()
        for event in self.GenerateStream(request, context):
            if event.HasField("prompt"):
                response.prompt.CopyFrom(event.prompt)
            else:
                response.outputs.add(finished=event.finished)
        return response

    def Abort(self, request, context):  # noqa: N802
        self.aborted.append(request.request_id)
        return pb.AbortResponse()


ANSWER = (
    pb.GenerateEvent(prompt=pb.PromptInfo(prompt_tokens=1)),
    pb.GenerateEvent(finished=pb.Finished(reason=pb.STOP)),
)


@contextmanager
def scripted(*script) -> Iterator[tuple[Scripted, str]]:
    """The server, and where it listens."""
    servicer = Scripted(*script)
    server = grpc.server(ThreadPoolExecutor(4))
    pb_grpc.add_InferenceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield servicer, f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
