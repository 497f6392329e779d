"""Whole processes that serve: how they end, and what their clients see of it."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import grpc
import pytest

from serve.client import Client, RetryPolicy
from serve.client.errors import ServerError, Unavailable
from serve.proto import inference_pb2 as pb
from serve.proto import inference_pb2_grpc as pb_grpc
from tests.serve.house import CANARY, in_loop, is_not_taken

#: With its answer, anything that lives in a process goes wrong.
TRIGGER = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[11]), stopping=pb.Stopping(max_tokens=9))
LOAD = pb.GenerateRequest(
    token_ids=pb.TokenIds(ids=[2, 7]), stopping=pb.Stopping(ignore_eos=True, max_tokens=3000)
)


class Process:
    """A server that listens."""

    def __init__(self, process: subprocess.Popen):
        self.process = process
        self.address = json.loads(process.stdout.readline())["grpc"]

    async def exit_code(self) -> int:
        return await asyncio.to_thread(self.process.wait, 60)


@contextmanager
def process(*arguments: str) -> Iterator[Process]:
    """A server process, which does not outlive the block."""
    command = [sys.executable, "-m", "tests.serve.process", *arguments]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield Process(running)
    finally:
        running.kill()
        running.wait()
        running.stdout.close()


async def canary(address: str) -> list[int]:
    async with grpc.aio.insecure_channel(address) as channel:
        response = await pb_grpc.InferenceStub(channel).Generate(CANARY)
        return list(response.outputs[0].token_ids)


async def end_of(call) -> tuple[str, str]:
    """What a stream's last event is, and its status."""
    kind = "nothing"
    try:
        while (event := await call.read()) is not grpc.aio.EOF:
            kind = event.WhichOneof("event")
            if kind == "finished":
                kind = pb.FinishReason.Name(event.finished.reason)
    except grpc.aio.AioRpcError as error:
        return kind, "UNAVAILABLE" if is_not_taken(error) else error.code().name
    return kind, "OK"


@pytest.mark.parametrize("fault", ["books", "device", "memory", "exit"])
@in_loop
async def test_a_process_whose_engine_is_gone_ends_with_an_error(fault):
    with process(fault) as server:
        assert len(await canary(server.address)) == 12
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = pb_grpc.InferenceStub(channel)
            running = stub.GenerateStream(LOAD)
            await running.read()
            ends = [end_of(running)]
            ends += [end_of(stub.GenerateStream(TRIGGER)) for _ in range(3)]
            assert set(await asyncio.gather(*ends)) <= {
                ("ERROR", "INTERNAL"),  # taken, and ended
                ("nothing", "UNAVAILABLE"),  # not taken
            }
            # Two failures may end all that is there; whoever comes then meets the last one.
            while (await end_of(stub.GenerateStream(TRIGGER)))[1] == "INTERNAL":
                pass
        assert await server.exit_code() == 1


@in_loop
async def test_sigterm_under_load_ends_or_aborts_all_that_was_taken():
    with process("none", "--drain-seconds=0.2") as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = pb_grpc.InferenceStub(channel)
            streams = [stub.GenerateStream(LOAD) for _ in range(60)]
            for stream in streams:
                await stream.read()
            server.process.send_signal(signal.SIGTERM)
            ends = await asyncio.gather(*map(end_of, streams))
            assert set(ends) <= {("ABORT", "OK"), ("LENGTH", "OK")}
        assert await server.exit_code() == 0


def test_whoever_comes_while_the_port_closes_is_told_that_the_server_is_not_there():
    own_connection = (("grpc.use_local_subchannel_pool", 1),)
    answered, has_ended = threading.Semaphore(0), threading.Event()

    def ask_on(ask, kind: type[Exception], errors: list[Exception]) -> None:
        """Always has a call on its way, until the server has gone."""
        while not (errors and has_ended.is_set()):
            try:
                ask()
                answered.release()
            except kind as error:
                errors.append(error)

    errors: list[list[Exception]] = [[] for _ in range(5)]
    with process("none") as server, contextlib.ExitStack() as stack:
        askers = []
        for number, mine in enumerate(errors):
            if number < 3:  # as other clients do
                channel = grpc.insecure_channel(server.address, options=own_connection)
                stub = pb_grpc.InferenceStub(stack.enter_context(channel))
                ask = partial(stub.Generate, CANARY, timeout=60)
                askers.append(
                    threading.Thread(target=ask_on, args=(ask, grpc.RpcError, mine), daemon=True)
                )
            else:
                once = RetryPolicy(max_attempts=1)
                client = stack.enter_context(Client(server.address, timeout=30, retry=once))
                ask = partial(client.generate, [3, 1, 4], max_tokens=1)
                askers.append(
                    threading.Thread(target=ask_on, args=(ask, ServerError, mine), daemon=True)
                )
        stack.callback(has_ended.set)
        for asker in askers:
            asker.start()
        for _ in range(50):
            assert answered.acquire(timeout=60)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        has_ended.set()
        for asker in askers:
            asker.join(90)
            assert not asker.is_alive()
    assert all(is_not_taken(error) for mine in errors[:3] for error in mine)
    assert {type(error) for mine in errors[3:] for error in mine} == {Unavailable}


@in_loop
async def test_sigkill_under_load_is_seen_at_once_and_a_new_process_serves():
    with process("none") as server:
        before = await canary(server.address)
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub = pb_grpc.InferenceStub(channel)
            streams = [stub.GenerateStream(LOAD) for _ in range(60)]
            for stream in streams:
                await stream.read()
            server.process.kill()
            ends = await asyncio.gather(*map(end_of, streams))
            assert {status for _, status in ends} == {"UNAVAILABLE"}
        port = server.address.rpartition(":")[2]
        assert await server.exit_code() == -signal.SIGKILL
        with process("none", f"--grpc-port={port}") as another:
            assert another.address == server.address
            assert await canary(another.address) == before


@in_loop
async def test_sigterm_ends_a_process_whose_device_hangs():
    with process("hang", "--drain-seconds=0.1") as server:
        async with grpc.aio.insecure_channel(server.address) as channel:
            stream = pb_grpc.InferenceStub(channel).GenerateStream(TRIGGER)
            await stream.read()
            server.process.send_signal(signal.SIGTERM)
            assert await end_of(stream) == ("ABORT", "OK")
        assert await server.exit_code() == 1
