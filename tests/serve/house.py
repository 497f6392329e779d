"""A server over a model that can be worked out by hand, and a channel to it."""

import asyncio
import functools
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import grpc

from jaxinfer.engine import Engine
from jaxinfer.engine.faults import FaultyRunner
from jaxinfer.errors import ChatTemplateError
from serve.model import ModelControl, ServedModel
from serve.proto import inference_pb2 as pb
from serve.proto import inference_pb2_grpc as pb_grpc
from serve.server import Server
from serve.settings import ServeSettings
from serve.tracing import Tracing
from tests.engine.house import VOCAB, FakeTokenizer, House, full_group, text_of

#: A context that no request fills while a test looks at it.
LONG = 4000

CANARY = pb.GenerateRequest(
    token_ids=pb.TokenIds(ids=[3, 1, 4, 1, 5]),
    sampling=pb.Sampling(temperature=0),
    stopping=pb.Stopping(max_tokens=12, ignore_eos=True),
)


def is_not_taken(error: grpc.RpcError) -> bool:
    """Whether it says that the server takes nothing any more.

    gRPC itself cancels a call that meets a port while it closes, and then says only that.
    """
    return error.code() is grpc.StatusCode.UNAVAILABLE or (
        error.code() is grpc.StatusCode.CANCELLED and error.details() == "CANCELLED"
    )


class ChattyTokenizer(FakeTokenizer):
    """A conversation is its contents, one after the other."""

    vocab_size = VOCAB
    bos_token_id: int | None = None
    eos_token_ids = (0,)
    chat_template = "{{ messages[0].content }}"

    def encode(self, text: str, **_: bool) -> list[int]:
        return [(ord(letter) - 97) % VOCAB for letter in text if letter != " "]

    def apply_chat_template(self, messages, **_: object) -> str:
        if not messages:
            raise ChatTemplateError("messages must not be empty")
        return "".join(message["content"] for message in messages)

    def decode(self, token_ids, **_: object) -> str:
        return text_of(token_ids)


class JsonTokenizer(ChattyTokenizer):
    """Its letters are those of JSON."""

    letters = 'a{}":bc,12[]'

    def token_bytes(self, token_id: int) -> bytes:
        return self.letters[token_id].encode()

    def id_to_token(self, token_id: int) -> str:
        return self.letters[token_id]

    def decode(self, token_ids, **_: object) -> str:
        return "".join(self.letters[token_id] for token_id in token_ids)


class ServeHouse:
    """What a test holds in its hands: the engine's house, the server, a channel and a stub."""

    def __init__(self, house: House, server: Server, channel: grpc.aio.Channel):
        self.house, self.server, self.channel = house, server, channel
        self.engine = house.engine
        self.faults: FaultyRunner = house.engine.runner
        self.stub = pb_grpc.InferenceStub(channel)

    async def events(self, request: pb.GenerateRequest, **call) -> list[pb.GenerateEvent]:
        return [event async for event in self.stub.GenerateStream(request, **call)]

    async def tokens(self, request: pb.GenerateRequest = CANARY, **call) -> list[int]:
        """Of output 0."""
        response = await self.stub.Generate(request, **call)
        return list(response.outputs[0].token_ids)

    async def idle(self) -> None:
        """Waits until nothing of any request is left, and looks at the books."""
        async with asyncio.timeout(20):
            # The engine forgets a request before its last event has come to the event loop.
            while self.engine.num_unfinished or self.server.frontend.num_unfinished:
                await asyncio.sleep(0.005)
        self.house.scheduler.check()
        assert self.engine.num_running == self.engine.num_waiting == 0
        assert self.engine.page_usage == 0.0


@asynccontextmanager
async def served(
    settings: ServeSettings | None = None,
    credentials: grpc.ChannelCredentials | None = None,
    *,
    survives: bool = True,
    tokenizer: FakeTokenizer | None = None,
    control: Callable[[Engine], ModelControl] | None = None,
    tracing: Tracing | None = None,
    num_pages: int | None = None,
    **limits,
) -> AsyncIterator[ServeHouse]:
    """A server on a free port; afterwards nothing is left in the engine, if it survives."""
    limits = {"max_model_len": LONG} | limits
    tokenizer = tokenizer or ChattyTokenizer()
    house = House(
        (full_group(num_pages or 2 + limits["max_model_len"]),),
        clock=time.monotonic,
        tokenizer=tokenizer,
        **limits,
    )
    model = ServedModel(
        name="tiny",
        engine=house.engine,
        tokenizer=tokenizer,
        max_model_len=limits["max_model_len"],
        control=None if control is None else control(house.engine),
    )
    house.engine.runner = FaultyRunner(house.runner)
    house.engine.start()
    server = Server(model, settings or ServeSettings(grpc_port=0), tracing)
    await server.start()
    try:
        async with channel_to(server, credentials) as channel:
            tested = ServeHouse(house, server, channel)
            tested.control = model.control
            yield tested
            if survives:
                await tested.idle()
    finally:
        house.engine.runner.go_on()
        await server.drain(seconds=5)
        house.engine.close()


def channel_to(
    server: Server, credentials: grpc.ChannelCredentials | None = None
) -> grpc.aio.Channel:
    """Another one; with credentials to "localhost", for which certificates are."""
    if credentials is None:
        return grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}")
    return grpc.aio.secure_channel(f"localhost:{server.grpc_port}", credentials)


def in_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """A test that is a coroutine; what it waits for comes within two minutes, or it fails."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        async def in_time() -> None:
            async with asyncio.timeout(120):
                await test(*args, **kwargs)

        asyncio.run(in_time())

    assert inspect.iscoroutinefunction(test)
    return run
