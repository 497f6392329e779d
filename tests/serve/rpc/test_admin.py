"""What operators may do, what they are refused, and what clients see of it."""

import asyncio
import contextlib
import threading
from concurrent.futures import Future
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from jaxinfer.engine.errand import WaitFor
from jaxinfer.errors import CorruptCheckpoint, InvalidParameter, ModelNotFound, Unsupported
from serve.proto import admin_pb2 as pb
from serve.proto import admin_pb2_grpc as pb_grpc
from serve.proto import inference_pb2
from serve.rpc.admin import ADMIN
from serve.rpc.server import INFERENCE, NOT_SERVING, SERVING
from serve.settings import ServeSettings
from tests.serve.house import CANARY, in_loop, served

LONG = inference_pb2.GenerateRequest(
    token_ids=inference_pb2.TokenIds(ids=[1]),
    stopping=inference_pb2.Stopping(ignore_eos=True, max_tokens=200),
)
Code = grpc.StatusCode


class FakeControl:
    """What an ``LLM`` does, on the fake engine; ``done`` is what it did."""

    def __init__(self, engine):
        self.engine, self.done = engine, []

    def _between_steps(self, what, wait_for, timeout):
        def note():
            self.done.append(what)

        future: Future = self.engine.between_steps(note, wait_for=wait_for, timeout=timeout)
        future.result(timeout=60)

    def update_weights(self, path: Path, *, timeout=None):
        match path.name:
            case "empty":
                raise ModelNotFound("nothing in it")
            case "corrupt":
                raise CorruptCheckpoint("corrupt")
            case "other":
                raise InvalidParameter("another architecture")
        self._between_steps(path, WaitFor.BEGUN, timeout)

    def sleep(self, level=1, *, timeout=None):
        if level not in (1, 2):
            raise InvalidParameter("level")
        self.engine.fall_asleep()
        try:
            self._between_steps(level, WaitFor.ALL, timeout)
        except BaseException:
            self.engine.wake()
            raise

    def wake_up(self):
        self._between_steps("wake", WaitFor.FLIGHT, None)
        self.engine.wake()

    def start_profile(self, directory):
        if directory in self.done:
            raise Unsupported("a profile is being taken")
        self.done.append(directory)

    def stop_profile(self):
        return self.done[-1]


def settings_with(tmp_path=None, **changes) -> ServeSettings:
    dirs = {} if tmp_path is None else {"weights_dir": tmp_path, "profile_dir": tmp_path / "p"}
    return ServeSettings(grpc_port=0, admin_port=0, **dirs, **changes)


@contextlib.asynccontextmanager
async def administered(settings: ServeSettings):
    """``(what tests.serve.house.served gives, a stub of Admin)``."""
    async with (
        served(settings, control=FakeControl) as tested,
        grpc.aio.insecure_channel(f"127.0.0.1:{tested.server.admin_port}") as channel,
    ):
        tested.admin_channel = channel
        yield tested, pb_grpc.AdminStub(channel)


async def refused(call, code: grpc.StatusCode, words: str = "") -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is code
    assert words in caught.value.details()


async def health_of(tested) -> int:
    stub = health_pb2_grpc.HealthStub(tested.channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=INFERENCE))).status


async def services(channel) -> set[str]:
    call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    answer = await call.read()
    call.cancel()
    return {service.name for service in answer.list_services_response.service}


@in_loop
async def test_there_is_no_such_port_unless_it_is_asked_for():
    async with served() as tested:
        assert tested.server.admin_port is None


@in_loop
async def test_each_port_has_its_own_services_alone():
    async with administered(settings_with()) as (tested, _):
        assert ADMIN in await services(tested.admin_channel)
        assert INFERENCE not in await services(tested.admin_channel)
        assert ADMIN not in await services(tested.channel)
        over_the_other = pb_grpc.AdminStub(tested.channel)
        await refused(over_the_other.Sleep(pb.SleepRequest()), Code.UNIMPLEMENTED)


@pytest.mark.parametrize(
    ("own", "right", "wrong"), [((), "client", "operator"), (("operator",), "operator", "client")]
)
@in_loop
async def test_operators_have_tokens_of_their_own_or_those_of_everybody(own, right, wrong):
    settings = settings_with(tokens=("client",), admin_tokens=own)
    async with administered(settings) as (_, stub):
        request = pb.ResetPrefixCacheRequest()
        await stub.ResetPrefixCache(request, metadata=[("authorization", f"Bearer {right}")])
        for metadata in ([], [("authorization", f"Bearer {wrong}")]):
            call = stub.ResetPrefixCache(request, metadata=metadata)
            await refused(call, Code.UNAUTHENTICATED)


@in_loop
async def test_a_drain_answers_at_once_and_lets_what_is_under_way_end():
    async with administered(settings_with()) as (tested, stub):
        running = tested.stub.GenerateStream(LONG)
        await running.read()
        assert (await stub.Drain(pb.DrainRequest(seconds=60))).num_unfinished == 1
        await refused(tested.tokens(CANARY), Code.UNAVAILABLE, "draining")
        events = []
        while (event := await running.read()) is not grpc.aio.EOF:
            events.append(event)
        assert events[-1].finished.usage.completion_tokens == 200
        await tested.server.serve_until_drained()


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
@in_loop
async def test_a_drain_of_no_time_that_there_is_changes_nothing(seconds):
    async with administered(settings_with()) as (tested, stub):
        call = stub.Drain(pb.DrainRequest(seconds=seconds))
        await refused(call, Code.INVALID_ARGUMENT, "from 0 to 86400")
        assert len(await tested.tokens(CANARY)) == 12


@in_loop
async def test_after_a_reset_nothing_is_found_in_the_prefix_cache():
    async with administered(settings_with()) as (tested, stub):
        prompt = inference_pb2.GenerateRequest(
            token_ids=inference_pb2.TokenIds(ids=[1, 2, 3, 4] * 4),
            stopping=inference_pb2.Stopping(max_tokens=2, ignore_eos=True),
        )

        async def num_cached() -> int:
            response = await tested.stub.Generate(prompt)
            return response.outputs[0].finished.usage.cached_tokens

        assert [await num_cached(), await num_cached()] == [0, 12]
        await stub.ResetPrefixCache(pb.ResetPrefixCacheRequest())
        assert await num_cached() == 0


@in_loop
async def test_weights_are_exchanged_after_who_was_begun_and_requests_queue_meanwhile(tmp_path):
    (tmp_path / "new").mkdir()
    async with administered(settings_with(tmp_path)) as (tested, stub):
        running = tested.stub.GenerateStream(LONG)
        await running.read()
        await running.read()  # its first token: it was begun
        update = asyncio.ensure_future(stub.UpdateWeights(pb.UpdateWeightsRequest(path="new")))
        events = []
        while (event := await running.read()) is not grpc.aio.EOF:
            events.append(event)
        assert events[-1].finished.usage.completion_tokens == 200
        await update
        assert tested.control.done == [tmp_path / "new"]
        assert len(await tested.tokens(CANARY)) == 12


@in_loop
async def test_what_is_no_checkpoint_of_the_servers_folder_is_refused(tmp_path):
    room = tmp_path / "weights"
    for name in ("empty", "corrupt", "other", "new"):
        (room / name).mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (room / "link").symlink_to(tmp_path / "outside")
    async with administered(settings_with(room)) as (tested, stub):
        for path, code in (
            ("", Code.INVALID_ARGUMENT),
            ("../outside", Code.PERMISSION_DENIED),
            ("link", Code.PERMISSION_DENIED),
            ("link/below", Code.PERMISSION_DENIED),
            (str(tmp_path), Code.PERMISSION_DENIED),
            ("/", Code.PERMISSION_DENIED),
            ("\0", Code.INVALID_ARGUMENT),
            ("x" * 10_000, Code.NOT_FOUND),
            ("absent", Code.NOT_FOUND),
            ("empty", Code.NOT_FOUND),
            ("corrupt", Code.INVALID_ARGUMENT),
            ("other", Code.INVALID_ARGUMENT),
        ):
            await refused(stub.UpdateWeights(pb.UpdateWeightsRequest(path=path)), code)
        bad = pb.UpdateWeightsRequest(path="new", timeout_seconds=float("nan"))
        await refused(stub.UpdateWeights(bad), Code.INVALID_ARGUMENT, "timeout_seconds")
        await stub.UpdateWeights(pb.UpdateWeightsRequest(path=str(room / "new")))
        assert tested.control.done == [room / "new"]


@in_loop
async def test_a_server_without_folders_takes_neither_weights_nor_profiles():
    async with administered(settings_with()) as (_, stub):
        update = stub.UpdateWeights(pb.UpdateWeightsRequest(path="new"))
        await refused(update, Code.FAILED_PRECONDITION, "--weights-dir")
        profile = stub.StartProfile(pb.StartProfileRequest())
        await refused(profile, Code.FAILED_PRECONDITION, "--profile-dir")


@in_loop
async def test_a_model_without_control_says_so():
    async with (
        served(settings_with()) as tested,
        grpc.aio.insecure_channel(f"127.0.0.1:{tested.server.admin_port}") as channel,
    ):
        call = pb_grpc.AdminStub(channel).Sleep(pb.SleepRequest())
        await refused(call, Code.FAILED_PRECONDITION, "cannot be controlled")
        assert await health_of(tested) == SERVING


@in_loop
async def test_a_profile_lies_below_the_servers_folder(tmp_path):
    async with administered(settings_with(tmp_path)) as (_, stub):
        outside = stub.StartProfile(pb.StartProfileRequest(directory="../elsewhere"))
        await refused(outside, Code.PERMISSION_DENIED)
        await stub.StartProfile(pb.StartProfileRequest(directory="today"))
        again = stub.StartProfile(pb.StartProfileRequest(directory="today"))
        await refused(again, Code.FAILED_PRECONDITION, "is being taken")
        where = await stub.StopProfile(pb.StopProfileRequest())
        assert where.directory == str(tmp_path / "p" / "today")


@in_loop
async def test_while_it_sleeps_requests_are_refused_and_health_says_no():
    async with administered(settings_with()) as (tested, stub):
        await stub.Sleep(pb.SleepRequest(level=2))
        assert tested.control.done == [2]
        assert await health_of(tested) == NOT_SERVING
        await refused(tested.tokens(CANARY), Code.UNAVAILABLE, "the model sleeps")
        await stub.Wake(pb.WakeRequest())
        assert await health_of(tested) == SERVING
        assert len(await tested.tokens(CANARY)) == 12


@in_loop
async def test_over_http_a_sleeping_server_is_unavailable_too():
    async with (
        administered(settings_with(http_port=0)) as (tested, stub),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{tested.server.http_port}") as client,
    ):
        body = {"model": "tiny", "prompt": [1, 2], "max_tokens": 2}
        answers = []
        for change, request in ((stub.Sleep, pb.SleepRequest()), (stub.Wake, pb.WakeRequest())):
            await change(request)
            health = await client.get("/health")
            completion = await client.post("/v1/completions", json=body)
            answers.append((health.status_code, completion.status_code))
        assert answers == [(503, 503), (200, 200)]


@in_loop
async def test_a_sleep_that_cannot_be_leaves_it_awake():
    async with administered(settings_with()) as (tested, stub):
        goes_on, read = threading.Event(), tested.house.runner.read

        def hang(pending):
            assert goes_on.wait(60)
            return read(pending)

        running = tested.stub.GenerateStream(LONG)
        await running.read()
        tested.house.runner.read = hang
        sleep = stub.Sleep(pb.SleepRequest(timeout_seconds=0))
        watch = health_pb2_grpc.HealthStub(tested.channel).Watch(
            health_pb2.HealthCheckRequest(service=INFERENCE)
        )
        while (await watch.read()).status == SERVING:
            pass
        goes_on.set()
        await refused(sleep, Code.DEADLINE_EXCEEDED, "all requests did not end in time")
        await refused(stub.Sleep(pb.SleepRequest(level=3)), Code.INVALID_ARGUMENT)
        assert await health_of(tested) == SERVING
        assert len(await tested.tokens(CANARY)) == 12
        running.cancel()
        watch.cancel()


@in_loop
async def test_bytes_that_are_no_message_are_told_so():
    async with administered(settings_with()) as (tested, _):
        for method in ("Drain", "UpdateWeights"):
            raw = tested.admin_channel.unary_unary(f"/jaxinfer.v1.Admin/{method}")
            await refused(raw(b"\xff\xff\xff"), Code.INTERNAL, "cannot be read")


@in_loop
async def test_a_message_longer_than_any_is_refused_by_its_size():
    async with administered(settings_with()) as (tested, stub):
        raw = tested.admin_channel.unary_unary("/jaxinfer.v1.Admin/UpdateWeights")
        await refused(raw(b"\0" * (2**16 + 1)), Code.RESOURCE_EXHAUSTED, "larger than max")
        await stub.ResetPrefixCache(pb.ResetPrefixCacheRequest())


def test_the_network_is_let_in_only_with_tokens_of_operators_or_certificates():
    for host in ("0.0.0.0", "::", "192.0.2.7", "example.org"):
        with pytest.raises(InvalidParameter, match="--admin-tokens-file"):
            ServeSettings(admin_port=0, admin_host=host)
        with pytest.raises(InvalidParameter, match="every client"):
            ServeSettings(admin_port=0, admin_host=host, tokens=("t",))
        assert ServeSettings(admin_port=0, admin_host=host, admin_tokens=("t",)).admin_port == 0
        assert ServeSettings(admin_host=host).admin_port is None
    for host in ("127.0.0.1", "127.0.0.9", "::1", "localhost"):
        assert ServeSettings(admin_port=0, admin_host=host).admin_host == host


@in_loop
async def test_a_device_that_goes_on_while_the_model_sleeps_does_not_show_it_ready():
    async with administered(settings_with()) as (tested, stub):
        await stub.Sleep(pb.SleepRequest())
        await tested.server._show_health(True)
        assert await health_of(tested) == NOT_SERVING
        await stub.Wake(pb.WakeRequest())
        assert await health_of(tested) == SERVING
