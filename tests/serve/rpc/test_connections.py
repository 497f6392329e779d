"""Connections: how long they last, and how much may be said about a call."""

import asyncio
import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serve.proto import inference_pb2 as pb
from serve.proto import inference_pb2_grpc as pb_grpc
from serve.settings import ServeSettings
from tests.serve.hostile.test_bytes import PREFACE, SETTINGS_FRAME
from tests.serve.house import CANARY, in_loop, served
from tests.serve.rpc.test_bounds import connection, standing, tokens_of
from tests.serve.rpc.test_inference import rest

IDLE, READY = grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.READY

ENDLESS = pb.GenerateRequest(
    token_ids=pb.TokenIds(ids=[1]), stopping=pb.Stopping(ignore_eos=True, max_tokens=3990)
)


@in_loop
async def test_a_connection_of_age_ends_with_its_calls_and_the_next_one_serves():
    settings = ServeSettings(grpc_port=0, max_connection_age=0.3, max_connection_grace=0.0)
    async with served(settings) as tested:
        read, may_hurry = tested.house.runner.read, threading.Event()

        def slowly(pending):  # so that the stream outlasts its connection
            may_hurry.wait(0.005)
            return read(pending)

        tested.house.runner.read = slowly
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await tested.events(ENDLESS)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        may_hurry.set()
        await tested.idle()
        assert len(await tokens_of_a_client_that_retries(tested)) == 12


async def tokens_of_a_client_that_retries(tested) -> list[int]:
    """Its call may be one that a connection's age ends."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await tested.tokens(CANARY, wait_for_ready=True)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise


@in_loop
async def test_a_connection_without_calls_ends_and_the_next_call_makes_a_new_one():
    settings = ServeSettings(grpc_port=0, max_connection_idle=0.1)
    async with served(settings) as tested, connection(tested) as channel:
        canary = await tokens_of(channel)
        await until(channel, IDLE)
        assert await tokens_of(channel) == canary
        await until(channel, IDLE)


@in_loop
async def test_connections_that_nobody_uses_keep_nobody_out_for_ever():
    settings = ServeSettings(grpc_port=0, max_connection_idle=0.1, max_connections=3)
    async with served(settings) as tested:
        address = ("127.0.0.1", tested.server.grpc_port)
        for greeting in (b"", PREFACE, PREFACE + SETTINGS_FRAME):
            held = [await asyncio.open_connection(*address) for _ in range(3)]
            for reader, writer in held:
                writer.write(greeting)
                while await read(reader):
                    pass
                writer.close()
        assert len(await tokens_of_a_client_that_retries(tested)) == 12


@in_loop
async def test_a_connection_with_a_standing_call_or_a_long_stream_is_not_idle():
    settings = ServeSettings(grpc_port=0, max_connection_idle=0.1)
    async with (
        served(settings) as tested,
        connection(tested) as watching,
        connection(tested) as streaming,
        connection(tested) as idle,
    ):
        watch = await standing(watching)
        tested.faults.hang()
        stream = pb_grpc.InferenceStub(streaming).GenerateStream(CANARY)
        await stream.read()
        for _ in range(3):  # each of them at least the time, and then they were left alone for it
            await health_pb2_grpc.HealthStub(idle).Check(health_pb2.HealthCheckRequest())
            await until(idle, IDLE)
        assert not watch.done()
        assert watching.get_state() is streaming.get_state() is READY
        tested.faults.go_on()
        events = await rest(stream)
        assert events[-1].finished.reason == pb.LENGTH
        watch.cancel()


async def until(channel: grpc.aio.Channel, state: grpc.ChannelConnectivity) -> None:
    while (now := channel.get_state()) is not state:
        await channel.wait_for_state_change(now)


async def read(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read(4096)
    except ConnectionError:
        return b""


@in_loop
async def test_more_metadata_than_allowed_refuses_the_call_and_nothing_else():
    async with served(ServeSettings(grpc_port=0, max_metadata_bytes=4096)) as tested:
        assert len(await tested.tokens(metadata=[("x", "y" * 2000)])) == 12
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await tested.tokens(metadata=[("x", "y" * 5000)])
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "metadata" in caught.value.details()
        assert len(await tested.tokens()) == 12
