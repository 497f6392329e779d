"""What is bounded before it is encoded."""

import asyncio
import threading

import grpc

from serve.proto import inference_pb2 as pb
from tests.serve.house import ChattyTokenizer, in_loop, served


class SlowTokenizer(ChattyTokenizer):
    """Encodes when it is told to."""

    def __init__(self):
        self.goes_on = threading.Event()

    def encode(self, text, **options):
        assert self.goes_on.wait(60)
        return super().encode(text, **options)


@in_loop
async def test_long_texts_that_wait_to_be_encoded_are_bounded(monkeypatch):
    monkeypatch.setattr("serve.frontend.MAX_ASIDE", 3)
    tokenizer = SlowTokenizer()
    async with served(tokenizer=tokenizer) as tested:
        request = pb.TokenizeRequest(text="ab" * 3000)
        calls = [asyncio.ensure_future(read(tested.stub.Tokenize(request))) for _ in range(9)]
        done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        while len(done) < 6:
            done, _ = await asyncio.wait(calls, timeout=0.01)
        assert {call.result() for call in done} == {"RESOURCE_EXHAUSTED"}
        tokenizer.goes_on.set()
        answers = await asyncio.gather(*calls)
        assert answers.count(6000) == 3
        assert await read(tested.stub.Tokenize(request)) == 6000


async def read(call) -> int | str:
    try:
        return len((await call).token_ids)
    except grpc.aio.AioRpcError as error:
        return error.code().name
