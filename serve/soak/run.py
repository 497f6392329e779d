"""The course of a soak: canaries alone, then everybody at once, then everything as at the start."""

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import grpc

from serve.proto import inference_pb2 as pb
from serve.proto import inference_pb2_grpc as pb_grpc
from serve.soak.canaries import Canaries
from serve.soak.record import Record
from serve.soak.trouble import Trouble
from serve.soak.visitors import Visitor, World

#: Seconds in which everything must be as at the start, once all trouble is over.
RECOVERY_SECONDS = 30.0
_PAGE_BYTES = 4096


@dataclass(frozen=True, kw_only=True)
class SoakSettings:
    """How long, and how hard.

    Attributes:
        seconds: of traffic.
        num_visitors: who are there at the same time.
        fault_interval: seconds between two faults of the device, where they can be caused.
        min_gap: of canaries, see there.
        max_growth: of resident memory from the first quarter to the end.
        seed: of all chance.
    """

    seconds: float
    num_visitors: int = 24
    fault_interval: float = 10.0
    min_gap: float = 0.1
    max_growth: float = 0.1
    seed: int = 0


async def soak(
    address: str,
    settings: SoakSettings,
    *,
    record: Record,
    trouble: Trouble | None = None,
    note: Callable[[str], None] = print,
) -> None:
    """Visits the server at an address; what it should not have done is in the record.

    ``trouble``: of its device, where that is in this process; its resident memory is then watched.
    """
    async with grpc.aio.insecure_channel(address) as channel:
        stub = pb_grpc.InferenceStub(channel)
        info = await stub.GetModelInfo(pb.GetModelInfoRequest())
        world = World(
            stub=stub,
            channel=channel,
            vocab_size=info.vocab_size,
            max_prompt=info.max_model_len // 4,
            has_faults=trouble is not None,
        )
        canaries = Canaries(stub, record, min_gap=settings.min_gap)
        await canaries.settle()
        note(f"{len(canaries)} canaries")
        try:
            await _disturb(world, canaries, settings, record, trouble, note)
            await _recover(stub, canaries, record)
        except grpc.aio.AioRpcError as error:
            record.violation(f"the server is gone: {error.code().name} {error.details()}")
        note(f"recovered in {record.recovery_seconds} s")
        if trouble is not None:
            _require_bounded(record, settings.max_growth)


async def _disturb(
    world: World,
    canaries: Canaries,
    settings: SoakSettings,
    record: Record,
    trouble: Trouble | None,
    note: Callable[[str], None],
) -> None:
    end = time.monotonic() + settings.seconds

    async def visit(number: int) -> None:
        visitor = Visitor(world, record, random.Random(f"{settings.seed}:{number}"))
        while time.monotonic() < end:
            await visitor.visit()

    async def watch_canaries() -> None:
        while time.monotonic() < end:
            await canaries.check()
            await asyncio.sleep(1.0)

    async def watch_memory() -> None:
        while True:
            record.resident_bytes.append(_resident_bytes())
            await asyncio.sleep(1.0)

    async def tell() -> None:
        while True:
            await asyncio.sleep(30.0)
            load = await world.stub.GetLoad(pb.GetLoadRequest())
            note(
                f"{max(0, end - time.monotonic()):.0f} s to go: {sum(record.calls.values())} calls,"
                f" {record.num_canaries} canaries, {record.num_faults} faults,"
                f" {load.num_running} running, {load.num_waiting} waiting,"
                f" {record.num_violations} violations"
            )

    beside = [asyncio.ensure_future(tell())]
    if trouble is not None:
        beside.append(asyncio.ensure_future(watch_memory()))
        beside.append(asyncio.ensure_future(trouble.make(settings.fault_interval)))
    try:
        await asyncio.gather(watch_canaries(), *map(visit, range(settings.num_visitors)))
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)


async def _recover(stub: pb_grpc.InferenceStub, canaries: Canaries, record: Record) -> None:
    """Waits until nothing is left of anybody, and the canaries are well."""
    begin = time.monotonic()
    while True:
        load = await stub.GetLoad(pb.GetLoadRequest())
        left = (load.num_running, load.num_waiting, load.num_unfinished, load.kv_cache_usage)
        if not any(left) and await canaries.check():
            break
        if time.monotonic() - begin > 2 * RECOVERY_SECONDS:
            record.violation(f"running, waiting, unfinished and pages are still {left}")
            break
        await asyncio.sleep(0.05)
    record.recovery_seconds = round(time.monotonic() - begin, 3)
    record.require(
        record.recovery_seconds <= RECOVERY_SECONDS,
        f"it took {record.recovery_seconds} s to recover: at most {RECOVERY_SECONDS} are allowed",
    )


def _require_bounded(record: Record, max_growth: float) -> None:
    """What is cached and warmed up in the first quarter is no leak."""
    sizes = record.resident_bytes
    quarter = len(sizes) // 4
    # The median: while a pool is rebuilt there are two of it for a moment, or none.
    early, late = median(sizes[quarter : 2 * quarter + 1]), median(sizes[-quarter - 1 :])
    record.require(
        late <= early * (1 + max_growth) + 2**26,
        f"resident memory grew from {early:,.0f} to {late:,.0f} bytes",
    )


def _resident_bytes() -> int:
    """Of this process; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0
