"""Health, reflection and the end of a server."""

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from serve.proto import inference_pb2 as pb
from serve.rpc.server import INFERENCE, NOT_SERVING, SERVING
from tests.serve.house import CANARY, in_loop, served


@pytest.mark.parametrize("service", ["", INFERENCE])
@in_loop
async def test_a_watch_stands_and_sees_the_drain_first(service):
    async with served() as tested:
        health = health_pb2_grpc.HealthStub(tested.channel)
        request = health_pb2.HealthCheckRequest(service=service)
        assert (await health.Check(request)).status == SERVING
        watch = health.Watch(request)
        assert (await watch.read()).status == SERVING
        asked = pb.GenerateRequest()
        asked.CopyFrom(CANARY)
        asked.stopping.max_tokens = 100
        running = tested.stub.GenerateStream(asked)
        await running.read()
        drain = asyncio.ensure_future(tested.server.drain(seconds=20))
        assert (await watch.read()).status == NOT_SERVING
        events = []
        while (event := await running.read()) is not grpc.aio.EOF:
            events.append(event)
        assert events[-1].finished.usage.completion_tokens == 100
        await drain


@in_loop
async def test_what_outlasts_the_drain_is_aborted():
    async with served() as tested:
        endless = pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=[1]), stopping=pb.Stopping(ignore_eos=True)
        )
        running = tested.stub.GenerateStream(endless)
        await running.read()
        drain = asyncio.ensure_future(tested.server.drain(seconds=0))
        last = None
        while (event := await running.read()) is not grpc.aio.EOF:
            last = event
        assert last.finished.reason == pb.ABORT
        await drain


@in_loop
async def test_a_client_finds_the_services_without_their_files():
    async with served() as tested:
        stub = reflection_pb2_grpc.ServerReflectionStub(tested.channel)
        call = stub.ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        answer = await call.read()
        names = {service.name for service in answer.list_services_response.service}
        assert {INFERENCE, "grpc.health.v1.Health"} <= names
        call.cancel()
