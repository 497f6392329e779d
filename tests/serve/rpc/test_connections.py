"""Connections: how long they last, and how much may be said about a call."""

import asyncio
import threading

import grpc
import pytest

from serve.proto import inference_pb2 as pb
from serve.settings import ServeSettings
from tests.serve.house import CANARY, in_loop, served

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
async def test_more_metadata_than_allowed_refuses_the_call_and_nothing_else():
    async with served(ServeSettings(grpc_port=0, max_metadata_bytes=4096)) as tested:
        assert len(await tested.tokens(metadata=[("x", "y" * 2000)])) == 12
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await tested.tokens(metadata=[("x", "y" * 5000)])
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert "metadata" in caught.value.details()
        assert len(await tested.tokens()) == 12
