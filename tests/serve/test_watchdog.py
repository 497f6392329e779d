"""Health when the device hangs."""

import asyncio
import threading

from grpc_health.v1 import health_pb2, health_pb2_grpc

from serve.rpc.server import INFERENCE, NOT_SERVING, SERVING
from serve.settings import ServeSettings
from serve.watchdog import Watchdog
from tests.engine.house import House
from tests.serve.house import CANARY, in_loop, served


@in_loop
async def test_only_a_step_that_somebody_waits_for_can_be_late():
    house, told = House(), []

    async def note(is_well: bool) -> None:
        told.append(is_well)

    watchdog = Watchdog(house.engine, patience=10, on_change=note, clock=lambda: house.now)
    for house.now in (0, 50, 100):  # idle
        await watchdog.look()
    house.submit("r", [1, 2], max_tokens=30, ignore_eos=True)
    for house.now in (105, 109):
        await watchdog.look()
    assert told == []
    house.now = 111
    await watchdog.look()
    await watchdog.look()
    assert told == [False]
    house.engine.step()
    await watchdog.look()
    assert told == [False, True]
    house.engine.abort("r")
    house.engine.step()


@in_loop
async def test_health_says_so_while_the_device_hangs_and_when_it_goes_on():
    async with served(ServeSettings(grpc_port=0, step_patience=0.3)) as tested:
        goes_on = threading.Event()
        read = tested.house.runner.read

        def hang(pending):
            assert goes_on.wait(60)
            return read(pending)

        watch = health_pb2_grpc.HealthStub(tested.channel).Watch(
            health_pb2.HealthCheckRequest(service=INFERENCE)
        )
        assert (await watch.read()).status == SERVING
        tested.house.runner.read = hang
        canary = asyncio.ensure_future(tested.tokens(CANARY))
        assert (await watch.read()).status == NOT_SERVING
        goes_on.set()
        assert (await watch.read()).status == SERVING
        assert len(await canary) == 12
        watch.cancel()
