"""Health, reflection and the end of a server."""

import asyncio
import struct

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from serve.proto import inference_pb2 as pb
from serve.rpc.server import INFERENCE, NOT_SERVING, SERVING
from serve.settings import ServeSettings
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


@pytest.mark.parametrize("service", ["", INFERENCE])
@in_loop
async def test_nobody_waits_for_a_watch_that_is_not_read(service):
    async with served() as tested:
        reader, writer = await asyncio.open_connection("127.0.0.1", tested.server.grpc_port)
        writer.write(unread_watch(service))
        async with asyncio.timeout(20):
            answer = b""
            while b"content-type" not in answer:  # its headers, which no window bounds
                answer += await reader.read(4096)
            health = health_pb2_grpc.HealthStub(tested.channel)
            request = health_pb2.HealthCheckRequest(service=service)
            watch = health.Watch(request)
            assert (await watch.read()).status == SERVING
            drain = asyncio.ensure_future(tested.server.drain(seconds=5))
            assert (await watch.read()).status == NOT_SERVING
            await drain
        writer.close()


def unread_watch(service: str) -> bytes:
    """What a client of HTTP/2 sends that watches a service, and allows no byte of an answer."""

    def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return (
            struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload
        )

    headers = {
        b":method": b"POST",
        b":scheme": b"http",
        b":path": b"/grpc.health.v1.Health/Watch",
        b":authority": b"localhost",
        b"content-type": b"application/grpc",
        b"te": b"trailers",
    }
    literal = b"".join(
        b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value
        for name, value in headers.items()
    )
    asked = health_pb2.HealthCheckRequest(service=service).SerializeToString()
    return (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + frame(4, 0, 0, struct.pack(">HI", 4, 0))  # SETTINGS: an initial window of 0
        + frame(1, 4, 1, literal)
        + frame(0, 1, 1, struct.pack(">BI", 0, len(asked)) + asked)
    )


@in_loop
async def test_a_second_signal_waits_for_nobody():
    async with served(ServeSettings(grpc_port=0, drain_seconds=1000)) as tested:
        endless = pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=[1]), stopping=pb.Stopping(ignore_eos=True, max_tokens=3900)
        )
        running = tested.stub.GenerateStream(endless)
        await running.read()
        tested.server.end()
        await asyncio.sleep(0)
        tested.server.end()
        last = None
        while (event := await running.read()) is not grpc.aio.EOF:
            last = event
        assert last.finished.reason == pb.ABORT
        async with asyncio.timeout(20):
            await tested.server.drain()
        assert not tested.server.has_failed


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
