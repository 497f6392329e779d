"""Calls that end when nobody expects it: before they ran, while they ran, and afterwards."""

import asyncio

import grpc
import pytest

from serve.proto import inference_pb2 as pb
from serve.settings import ServeSettings
from tests.serve.house import CANARY, ChattyTokenizer, in_loop, served

METHOD = "/jaxinfer.v1.Inference/GenerateStream"


def endless(name: str = "endless", **fields) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        request_id=name,
        token_ids=pb.TokenIds(ids=[2, 7]),
        stopping=pb.Stopping(ignore_eos=True),
        **fields,
    )


async def outcome(stream) -> tuple[list[int], str]:
    """The reasons of all ends of a stream, and its status."""
    reasons = []
    try:
        while (event := await stream.read()) is not grpc.aio.EOF:
            if event.WhichOneof("event") == "finished":
                reasons.append(event.finished.reason)
    except grpc.aio.AioRpcError as error:
        return reasons, error.code().name
    except asyncio.CancelledError:
        return reasons, "CANCELLED"
    return reasons, "OK"


async def until(condition) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture
def abort():
    return pb.AbortRequest(request_id="endless")


@in_loop
async def test_an_abort_before_its_request_finds_nobody(abort):
    async with served() as tested:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await tested.stub.Abort(abort)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        stream = tested.stub.GenerateStream(endless())
        await stream.read()
        assert await tested.tokens(CANARY)
        await tested.stub.Abort(abort)
        await tested.stub.Abort(abort)
        assert await outcome(stream) == ([pb.ABORT], "OK")
        await tested.stub.Abort(abort)


@in_loop
async def test_an_abort_ends_what_waits_in_the_queue(abort):
    async with served(max_num_seqs=1) as tested:
        canary = await tested.tokens()
        first = tested.stub.GenerateStream(endless("first"))
        await first.read()
        waiting = tested.stub.GenerateStream(endless(sampling=pb.Sampling(n=3)))
        await waiting.read()
        await until(lambda: tested.engine.num_waiting == 3)
        await tested.stub.Abort(abort)
        assert await outcome(waiting) == ([pb.ABORT] * 3, "OK")
        first.cancel()
        assert await tested.tokens() == canary


async def in_queue(tested):
    first = tested.stub.GenerateStream(endless("first"))
    await first.read()
    stream = tested.stub.GenerateStream(endless())
    await stream.read()
    await until(lambda: tested.engine.num_waiting == 1)
    return first, stream


async def in_prefill(tested):
    tested.faults.delay = 0.05  # a step of 16 tokens of the prompt
    request = endless()
    request.token_ids.ids.extend([1] * 3000)
    stream = tested.stub.GenerateStream(request)
    await stream.read()
    await until(lambda: tested.engine.num_running == 1)
    return (stream,)


async def in_decode(tested):
    stream = tested.stub.GenerateStream(endless())
    await stream.read()
    await stream.read()
    return (stream,)


@pytest.mark.parametrize("where", [in_queue, in_prefill, in_decode])
@in_loop
async def test_a_call_that_is_cancelled_leaves_nothing(where):
    async with served(max_num_seqs=1) as tested:
        canary = await tested.tokens()
        streams = await where(tested)
        for stream in reversed(streams):
            stream.cancel()
        await tested.idle()
        assert tested.house.stats.num_generated_tokens < 3000
        tested.faults.delay = 0.0
        assert await tested.tokens() == canary


@in_loop
async def test_a_deadline_ends_what_waits_in_the_queue():
    settings = ServeSettings(grpc_port=0, deadline_margin=60)
    async with served(settings, max_num_seqs=1) as tested:
        canary = await tested.tokens()
        first = tested.stub.GenerateStream(endless("first"))
        await first.read()
        waiting = tested.stub.GenerateStream(endless(sampling=pb.Sampling(n=2)), timeout=3)
        assert await outcome(waiting) == ([pb.DEADLINE] * 2, "DEADLINE_EXCEEDED")
        first.cancel()
        assert await tested.tokens() == canary


@in_loop
async def test_a_channel_that_closes_takes_its_streams_along():
    async with served() as tested:
        canary = await tested.tokens()
        address = f"127.0.0.1:{tested.server.grpc_port}"
        async with grpc.aio.insecure_channel(address) as channel:
            call = channel.unary_stream(METHOD)
            streams = [call(endless(f"s{n}").SerializeToString()) for n in range(9)]
            for stream in streams:
                await stream.read()
        await tested.idle()
        assert await tested.tokens() == canary


@in_loop
async def test_a_stream_that_its_client_never_closes_is_served_and_let_go():
    async with served() as tested:
        canary = await tested.tokens()
        call = tested.channel.stream_stream(METHOD)
        silent = call()  # says nothing at all
        half = call()
        await half.write(endless().SerializeToString())  # and stays open
        assert await half.read()
        await until(lambda: tested.engine.num_running == 1)
        half.cancel()
        await tested.idle()
        empty = call()
        await empty.done_writing()  # gRPC waits for a message that will not come
        assert await tested.tokens() == canary
        empty.cancel()
        silent.cancel()


@in_loop
async def test_a_reader_that_does_not_read_sees_the_ends_and_nobody_waits_for_it():
    settings = ServeSettings(grpc_port=0, max_pending_tokens=200)
    async with served(settings) as tested:
        canary = await tested.tokens()
        address = f"127.0.0.1:{tested.server.grpc_port}"
        narrow = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024))
        async with grpc.aio.insecure_channel(address, options=narrow) as channel:
            stream = channel.unary_stream(
                METHOD, response_deserializer=pb.GenerateEvent.FromString
            )(endless(sampling=pb.Sampling(n=4), output=pb.Output(logprobs=3)).SerializeToString())
            await stream.read()
            assert await tested.tokens() == canary
            await until(lambda: tested.engine.num_unfinished == 0)
            reasons, status = await outcome(stream)
            assert (reasons, status) == ([pb.ERROR] * 4, "RESOURCE_EXHAUSTED")
        assert await tested.tokens() == canary


@in_loop
async def test_what_waited_for_a_slow_reader_comes_in_messages_that_may_be_sent():
    most = 2**14
    async with served(ServeSettings(grpc_port=0, max_message_bytes=most)) as tested:
        request = endless(sampling=pb.Sampling(n=4), output=pb.Output(logprobs=3))
        request.stopping.max_tokens = 600
        address = f"127.0.0.1:{tested.server.grpc_port}"
        narrow = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024))
        async with grpc.aio.insecure_channel(address, options=narrow) as channel:
            call = channel.unary_stream(METHOD)(request.SerializeToString())
            await until(lambda: tested.engine.num_running)
            await until(lambda: tested.engine.num_unfinished == 0)
            messages = [message async for message in call]
        sizes = [len(message) for message in messages]
        assert most // 4 < max(sizes) <= most  # some of them were parted
        events = [pb.GenerateEvent.FromString(message) for message in messages]
        assert sum(len(event.delta.token_ids) for event in events) == 4 * 600
        assert sum(event.WhichOneof("event") == "finished" for event in events) == 4


@in_loop
async def test_a_client_may_ping_through_a_long_prefill():
    settings = ServeSettings(grpc_port=0, min_ping_interval_ms=100)
    async with served(settings) as tested:
        address = f"127.0.0.1:{tested.server.grpc_port}"
        pinging = (
            ("grpc.keepalive_time_ms", 200),
            ("grpc.keepalive_timeout_ms", 5_000),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.keepalive_permit_without_calls", 1),
        )
        async with grpc.aio.insecure_channel(address, options=pinging) as channel:
            tested.faults.hang()
            request = endless()
            request.stopping.max_tokens = 3
            stream = channel.unary_stream(
                METHOD, response_deserializer=pb.GenerateEvent.FromString
            )(request.SerializeToString())
            await stream.read()
            await asyncio.sleep(2)  # ten pings, for which there is no event
            tested.faults.go_on()
            assert await outcome(stream) == ([pb.LENGTH], "OK")


class ByteTokenizer(ChattyTokenizer):
    """Its tokens are parts of characters; the last two ids are of the model, not of it."""

    vocab_size = 10
    pieces = (
        b"\xc3",
        b"\xa9",
        b"\xe2\x82",
        b"\xac",
        b"a",
        b"\xf0\x9f",
        b"\x98\x80",
        b"b",
        b" ",
        b"",
    )

    def token_bytes(self, token_id: int) -> bytes:
        return self.pieces[token_id] if token_id < self.vocab_size else b""

    def id_to_token(self, token_id: int) -> str:
        return self.token_bytes(token_id).decode(errors="replace")


@in_loop
async def test_a_stop_may_begin_and_end_within_characters_and_deltas():
    async with served(tokenizer=ByteTokenizer()) as tested:
        request = pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=[3, 1, 4]),
            stopping=pb.Stopping(max_tokens=120, ignore_eos=True),
        )
        [output] = (await tested.stub.Generate(request)).outputs
        assert any(len(letter.encode()) > 1 for letter in output.text)
        spans = [output.text[at : at + 7] for at in range(5, len(output.text) - 7, 5)]
        for stop in spans:
            del request.stopping.stop[:]
            request.stopping.stop.append(stop)
            events = [event async for event in tested.stub.GenerateStream(request)]
            text = "".join(event.delta.text for event in events)
            assert text == output.text[: output.text.index(stop)]
            assert events[-1].finished.reason == pb.STOP
            assert events[-1].finished.stop_text == stop


@in_loop
async def test_ids_that_only_the_model_knows_are_tokens_without_a_text():
    async with served(tokenizer=ByteTokenizer()) as tested:
        request = pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=[10, 11, 4]),
            sampling=pb.Sampling(allowed_token_ids=[10, 11]),
            stopping=pb.Stopping(max_tokens=20, stop_token_ids=[10], ignore_eos=True),
            output=pb.Output(logprobs=2, prompt_logprobs=2),
        )
        response = await tested.stub.Generate(request)
        assert len(response.prompt.logprobs) == 2
        assert len(response.outputs[0].logprobs) == len(response.outputs[0].token_ids)
