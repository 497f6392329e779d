"""More calls and connections than there may be at once: some wait, some are refused."""

import asyncio
from contextlib import AsyncExitStack

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serve.proto import inference_pb2_grpc as pb_grpc
from serve.settings import ServeSettings
from tests.serve.house import CANARY, ServeHouse, in_loop, served

#: Of one connection: two.
FEW = ServeSettings(grpc_port=0, max_calls=8)


def connection(tested: ServeHouse) -> grpc.aio.Channel:
    """One of its own: channels to the same address share theirs, unless they are told not to."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.aio.insecure_channel(f"127.0.0.1:{tested.server.grpc_port}", options)


async def standing(channel: grpc.aio.Channel) -> grpc.aio.UnaryStreamCall:
    """A call that stays until it is cancelled."""
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    return watch


async def tokens_of(channel: grpc.aio.Channel, **call) -> list[int]:
    response = await pb_grpc.InferenceStub(channel).Generate(CANARY, **call)
    return list(response.outputs[0].token_ids)


async def tokens_at_last(channel: grpc.aio.Channel, code: grpc.StatusCode) -> list[int]:
    """Of a client that tries again: it may take a while until the server has seen who left."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await tokens_of(channel, wait_for_ready=True)
            except grpc.aio.AioRpcError as error:
                if error.code() is not code:
                    raise
            await asyncio.sleep(0.01)


@in_loop
async def test_calls_beyond_the_share_of_a_connection_wait_and_hold_up_nobody_else():
    async with served(FEW) as tested, connection(tested) as crowded, connection(tested) as other:
        canary = await tokens_of(crowded)
        watches = [await standing(crowded) for _ in range(2)]
        waiting = asyncio.ensure_future(tokens_of(crowded))
        late = asyncio.ensure_future(tokens_of(crowded, timeout=0.2))
        assert await tokens_of(other) == canary
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await late
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert not waiting.done()
        assert tested.house.stats.num_generated_tokens == 2 * len(canary)  # nobody else's
        watches[0].cancel()
        assert await waiting == canary


@in_loop
async def test_calls_beyond_those_of_all_connections_are_refused_until_others_end():
    async with served(FEW) as tested, AsyncExitStack() as stack:
        canary = await tested.tokens()
        crowd = [await stack.enter_async_context(connection(tested)) for _ in range(4)]
        watches = [await standing(channel) for channel in crowd for _ in range(2)]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await tested.tokens()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for _ in range(30):  # those that are refused were never counted
            with pytest.raises(grpc.aio.AioRpcError):
                await tested.tokens()
        watches[0].cancel()
        assert await tokens_at_last(tested.channel, grpc.StatusCode.RESOURCE_EXHAUSTED) == canary


@in_loop
async def test_connections_beyond_the_bound_are_closed_and_the_others_are_served():
    async with served(ServeSettings(grpc_port=0, max_connections=3)) as tested:
        canary = await tested.tokens()
        address = ("127.0.0.1", tested.server.grpc_port)
        idle = [await asyncio.open_connection(*address) for _ in range(2)]
        for _ in range(20):
            reader, writer = await asyncio.open_connection(*address)
            assert await closed(reader)
            writer.close()
        assert await tested.tokens() == canary
        async with connection(tested) as late:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await tokens_of(late)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            for _, writer in idle:
                writer.close()
            assert await tokens_at_last(late, grpc.StatusCode.UNAVAILABLE) == canary


async def closed(reader: asyncio.StreamReader) -> bool:
    """Whether the connection ends without a byte."""
    try:
        return await reader.read() == b""
    except ConnectionError:
        return True
