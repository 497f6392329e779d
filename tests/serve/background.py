"""A server in a thread of its own, for many small tests that share it."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from serve.proto import inference_pb2_grpc as pb_grpc
from serve.settings import ServeSettings
from tests.serve.house import CANARY, ServeHouse, served


class Background:
    """What a test holds in its hands: a channel and a stub, and the engine behind them."""

    def __init__(self, tested: ServeHouse, channel: grpc.Channel, loop: asyncio.AbstractEventLoop):
        self.tested, self.channel, self._loop = tested, channel, loop
        self.is_draining = False
        self.engine = tested.engine
        self.address = f"127.0.0.1:{tested.server.grpc_port}"
        self.stub = pb_grpc.InferenceStub(channel)
        self.canary = self.tokens()

    def tokens(self) -> list[int]:
        return list(self.stub.Generate(CANARY, timeout=60).outputs[0].token_ids)

    def assert_unharmed(self) -> None:
        """Nothing is left of any request, and the canary's tokens are what they were."""
        deadline = time.monotonic() + 60
        while self.engine.num_unfinished or self.tested.server.frontend.num_unfinished:
            assert time.monotonic() < deadline, "a request does not end"
            time.sleep(0.002)
        assert self.engine.num_running == self.engine.num_waiting == 0
        assert self.engine.page_usage == 0.0
        if not self.is_draining:
            assert self.tokens() == self.canary
        self.tested.house.scheduler.check()

    def drain(self, seconds: float) -> None:
        """Begins to; nothing new is taken any more."""
        self.is_draining = True
        asyncio.run_coroutine_threadsafe(self.tested.server.drain(seconds), self._loop)


@contextmanager
def background(
    settings: ServeSettings | None = None, channel_options: tuple = (), **limits
) -> Iterator[Background]:
    """A server, until the block is left."""
    ready: list[ServeHouse] = []
    has_started, stops = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with served(settings, **limits) as tested:
            ready.append(tested)
            has_started.set()
            await stops.wait()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        finally:
            loop.close()
            has_started.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert has_started.wait(60)
    try:
        address = f"127.0.0.1:{ready[0].server.grpc_port}"
        with grpc.insecure_channel(address, options=channel_options) as channel:
            yield Background(ready[0], channel, loop)
    finally:
        loop.call_soon_threadsafe(stops.set)
        thread.join()
