"""A server that cannot serve any more: it says so, ends what it took, and ends itself."""

import asyncio

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serve.proto import inference_pb2 as pb
from serve.rpc.server import INFERENCE, NOT_SERVING, SERVING
from serve.settings import ServeSettings
from tests.serve.house import CANARY, in_loop, is_not_taken, served
from tests.serve.http.house import COMPLETIONS, ENDLESS, http_served

PATIENT = ServeSettings(grpc_port=0)
#: Gives a device up that does not finish a step.
STRICT = ServeSettings(grpc_port=0, step_patience=0.2, hang_patience=0.2)


def endless(name: str) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        request_id=name,
        token_ids=pb.TokenIds(ids=[2, 7]),
        stopping=pb.Stopping(ignore_eos=True),
        sampling=pb.Sampling(n=2),
    )


async def ends_of(stream) -> tuple[list[tuple[int, int]], grpc.StatusCode]:
    """Every end that a stream brings, as output and reason, and its status."""
    ends = []
    try:
        while (event := await stream.read()) is not grpc.aio.EOF:
            if event.WhichOneof("event") == "finished":
                ends.append((event.finished.index, event.finished.reason))
    except grpc.aio.AioRpcError as error:
        return ends, error.code()
    return ends, await stream.code()


def wrong_books(tested):
    tested.house.scheduler.slots._free.append(0)


def no_memory(tested):
    tested.faults.fail_next("read", MemoryError())


def exit_in_a_step(tested):
    tested.faults.fail_next("launch", SystemExit(3))


def no_reset(tested):
    tested.faults.fail_next("reset", OSError("the device is gone"))
    tested.faults.fail_next("read", RuntimeError("the device is gone"))


def nothing_works(tested):
    tested.faults.fail_always = RuntimeError("the device is gone")


def dead_without_a_word(tested):
    def die(error):
        raise MemoryError

    tested.engine._die = die
    tested.faults.fail_next("read", MemoryError())


def nobody_watches(tested):
    def fail():
        raise ZeroDivisionError

    tested.server._watchdog.look = fail


def hang(tested):
    tested.faults.hang()


@pytest.mark.parametrize(
    ("fault", "settings"),
    [
        (wrong_books, PATIENT),
        (no_memory, PATIENT),
        (exit_in_a_step, PATIENT),
        (no_reset, PATIENT),
        (dead_without_a_word, PATIENT),
        (nobody_watches, PATIENT),
        (hang, STRICT),
    ],
)
@in_loop
async def test_an_engine_that_dies_takes_its_server_along(fault, settings):
    async with served(settings, survives=False) as tested:
        health = health_pb2_grpc.HealthStub(tested.channel)
        watches = [
            health.Watch(health_pb2.HealthCheckRequest(service=service))
            for service in ("", INFERENCE)
        ]
        for watch in watches:
            assert (await watch.read()).status == SERVING
        streams = [tested.stub.GenerateStream(endless(f"s{number}")) for number in range(5)]
        unary = tested.stub.Generate(endless("unary"))
        for stream in streams:
            await stream.read()
        while tested.engine.num_unfinished < 6:
            await asyncio.sleep(0.001)
        fault(tested)
        for watch in watches:
            assert (await watch.read()).status == NOT_SERVING
            watch.cancel()
        for stream in streams:
            ends, code = await ends_of(stream)
            assert sorted(ends) == [(0, pb.ERROR), (1, pb.ERROR)]
            assert code is grpc.StatusCode.INTERNAL
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unary
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await tested.tokens()
        assert is_not_taken(caught.value)
        async with asyncio.timeout(20):
            await tested.server.serve_until_drained()
        assert tested.server.has_failed
        tested.faults.go_on()


@pytest.mark.parametrize("fault", [wrong_books, no_reset, hang])
@in_loop
async def test_over_http_an_engine_that_dies_is_seen_too(fault):
    async with http_served(STRICT, survives=False) as tested:
        assert (await tested.client.get("/health")).status_code == 200
        body = {**ENDLESS, "n": 2, "stream": True}
        async with tested.client.stream("POST", COMPLETIONS, json=body) as response:
            assert response.status_code == 200
            lines = response.aiter_lines()
            assert (await anext(lines)).startswith("data:")
            fault(tested)
            events = [line async for line in lines if line]
        assert any('"error"' in event for event in events)
        async with asyncio.timeout(20):
            await tested.server.serve_until_drained()
        assert tested.server.has_failed
        with pytest.raises(httpx.TransportError):
            await tested.client.get("/health")
        tested.faults.go_on()


@in_loop
async def test_a_device_that_fails_again_and_again_takes_the_server_along():
    async with served(survives=False) as tested:
        assert len(await tested.tokens()) == 12
        nothing_works(tested)
        errors = []
        for _ in range(4):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await tested.tokens()
            errors.append(caught.value)
        are_ours = [error.code() is grpc.StatusCode.INTERNAL for error in errors]
        assert are_ours[0]
        assert all(map(is_not_taken, errors[sum(are_ours) :]))
        async with asyncio.timeout(20):
            await tested.server.serve_until_drained()
        assert tested.server.has_failed


@in_loop
async def test_a_drain_ends_what_the_engine_cannot(monkeypatch):
    monkeypatch.setattr("serve.server._ABORT_SECONDS", 0.1)
    async with served(survives=False) as tested:
        stream = tested.stub.GenerateStream(endless("s"))
        await stream.read()
        tested.faults.hang()
        while not tested.faults.is_hanging:
            await asyncio.sleep(0.001)
        await tested.server.drain(seconds=0)
        ends, _ = await ends_of(stream)
        assert sorted(ends) == [(0, pb.ABORT), (1, pb.ABORT)]
        assert tested.server.has_failed
        tested.faults.go_on()


@in_loop
async def test_a_drain_after_which_nothing_is_left_is_no_failure():
    async with served() as tested:
        stream = tested.stub.GenerateStream(endless("s"))
        await stream.read()
        ending = asyncio.ensure_future(tested.server.drain(seconds=0))
        ends, code = await ends_of(stream)
        await ending
        assert sorted(ends) == [(0, pb.ABORT), (1, pb.ABORT)]
        assert code is grpc.StatusCode.OK
        assert not tested.server.has_failed


@in_loop
async def test_at_a_deadline_the_end_comes_though_the_device_hangs():
    async with served(ServeSettings(grpc_port=0, deadline_margin=60)) as tested:
        canary = await tested.tokens()
        stream = tested.stub.GenerateStream(endless("s"), timeout=3)
        await stream.read()
        tested.faults.hang()
        ends, code = await ends_of(stream)
        assert sorted(ends) == [(0, pb.DEADLINE), (1, pb.DEADLINE)]
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await tested.tokens(endless("s"))  # its id is in use until the engine lets it go
        assert caught.value.code() is grpc.StatusCode.ALREADY_EXISTS
        tested.faults.go_on()
        assert await tested.tokens(CANARY) == canary
