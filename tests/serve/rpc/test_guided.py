"""Guided requests over gRPC: outputs that match, and what is refused or hostile."""

import asyncio
import json
import threading

import grpc
import pytest

from jaxinfer.guides import compiler
from jaxinfer.sampling_params import RequestLimits
from jaxinfer.structured_outputs import Guide
from serve.proto import inference_pb2 as pb
from tests.serve.house import CANARY, in_loop, served

SCHEMA = json.dumps({"type": "object"})
RULES = 'start: "b" start "c" | "def"'


def guided(guide: pb.Guided | None = None, **kinds) -> pb.GenerateRequest:
    return pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=[3, 1, 4]),
        sampling=pb.Sampling(temperature=0),
        stopping=pb.Stopping(max_tokens=12),
        guided=guide or pb.Guided(**kinds),
    )


def nested(levels: int) -> str:
    return '{"properties":' * levels + "{}" + "}" * levels


@pytest.mark.parametrize(
    ("kinds", "texts"),
    [
        ({"regex": "(bcd|efg)h"}, {"bcdh", "efgh"}),
        ({"choice": pb.Choice(choices=["bd", "kkk"])}, {"bd", "kkk"}),
        ({"grammar": RULES}, {"b" * n + "def" + "c" * n for n in range(5)}),
        ({"grammar": 'root ::= "b" [c-d] "e"'}, {"bce", "bde"}),
    ],
    ids=["regex", "choice", "lark", "gbnf"],
)
@in_loop
async def test_the_output_matches_its_guide_and_its_neighbour_does_not_notice(kinds, texts):
    async with served() as tested:
        alone = await tested.tokens()
        neighbour = asyncio.create_task(tested.tokens())
        [output] = (await tested.stub.Generate(guided(**kinds))).outputs
        whole = len(output.token_ids) < 12
        assert output.text in texts or not whole
        assert output.finished.reason == (pb.STOP if whole else pb.LENGTH)
        assert await neighbour == alone


@pytest.mark.parametrize(
    ("guide", "code", "words"),
    [
        (pb.Guided(regex="zz"), "FAILED_PRECONDITION", "structured_outputs.regex = 'zz'"),
        (pb.Guided(json_schema=SCHEMA), "FAILED_PRECONDITION", "no token of this model"),
        (pb.Guided(json_schema="false"), "FAILED_PRECONDITION", "structured_outputs.json"),
        (pb.Guided(json_schema='{"$ref": "#"}'), "FAILED_PRECONDITION", "$ref"),
        (pb.Guided(regex="("), "INVALID_ARGUMENT", "unclosed group"),
        (pb.Guided(regex=""), "INVALID_ARGUMENT", "not empty"),
        (pb.Guided(regex="(" * 10_000 + ")" * 10_000), "INVALID_ARGUMENT", "regex"),
        (pb.Guided(grammar="start: foo"), "INVALID_ARGUMENT", "unknown name"),
        (pb.Guided(json_schema=nested(10_000)), "INVALID_ARGUMENT", "bytes"),
        (pb.Guided(json_schema=nested(100)), "INVALID_ARGUMENT", "64 levels"),
        (pb.Guided(json_schema="[" * 10_000), "INVALID_ARGUMENT", "64 levels"),
        (pb.Guided(json_schema=" " * 2**20), "INVALID_ARGUMENT", "1048576 bytes"),
        (pb.Guided(json_schema="{"), "INVALID_ARGUMENT", "is no JSON"),
        (pb.Guided(choice=pb.Choice()), "INVALID_ARGUMENT", "choice holds 0"),
        (pb.Guided(choice=pb.Choice(choices=["b"] * 2000)), "INVALID_ARGUMENT", "2000"),
        (pb.Guided(choice=pb.Choice(choices=["b"] * 10**5)), "INVALID_ARGUMENT", "100000"),
        (pb.Guided(), "INVALID_ARGUMENT", "set exactly one"),
    ],
    ids=lambda value: str(value)[:40],
)
@in_loop
async def test_a_guide_that_cannot_be_used_is_refused_before_it_is_accepted(guide, code, words):
    async with served() as tested:
        alone = await tested.tokens()
        for call in (tested.events(guided(guide)), tested.tokens(guided(guide))):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await call
            assert error.value.code() is grpc.StatusCode[code]
            assert words in error.value.details()
        await tested.idle()
        assert await tested.tokens() == alone


@in_loop
async def test_nested_quantifiers_are_regular_expressions_like_others():
    async with served() as tested:
        [output] = (await tested.stub.Generate(guided(regex="(b*)*c"))).outputs
        assert set(output.text.removesuffix("c")) <= {"b"}


@in_loop
async def test_a_guide_that_nothing_allowed_can_go_on_with_ends_its_request_alone():
    async with served() as tested:
        alone = await tested.tokens()
        request = guided(regex="bbcc")
        request.sampling.allowed_token_ids.extend([1])
        neighbour = asyncio.create_task(tested.tokens())
        events = []

        async def read() -> None:
            async for event in tested.stub.GenerateStream(request):
                events.append(event)

        with pytest.raises(grpc.aio.AioRpcError) as error:
            await read()
        *_, told, last = events
        assert "allowed_token_ids" in told.error.message
        assert last.finished.reason == pb.ERROR
        assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert await neighbour == alone
        with pytest.raises(grpc.aio.AioRpcError) as whole:
            await tested.tokens(request)
        assert whole.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert whole.value.details() == error.value.details() == told.error.message


@in_loop
async def test_others_are_served_while_guides_are_compiled_and_slow_ones_are_refused(monkeypatch):
    go_on = threading.Event()

    def held(_):
        assert go_on.wait(60)
        return 'start: "b"'

    monkeypatch.setattr(compiler, "lark_of", held)
    async with served(request=RequestLimits(max_guide_seconds=0.5)) as tested:
        slow = [
            asyncio.create_task(tested.tokens(guided(regex=f"b{number}"))) for number in range(3)
        ]
        assert len(await tested.tokens()) == CANARY.stopping.max_tokens
        answers = await asyncio.gather(*slow, return_exceptions=True)
        go_on.set()
        codes = [answer.code() for answer in answers]
        assert codes.count(grpc.StatusCode.INVALID_ARGUMENT) == compiler.NUM_THREADS
        assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 1


@in_loop
async def test_who_waits_for_a_guide_when_the_engine_is_closed_is_told_so(monkeypatch):
    begun, go_on = threading.Semaphore(0), threading.Event()

    def held(_):
        begun.release()
        assert go_on.wait(60)
        return 'start: "b"'

    monkeypatch.setattr(compiler, "lark_of", held)
    async with served() as tested:
        compiling = tested.engine._constraints.guides
        for number in range(compiler.NUM_THREADS):
            compiling.submit(Guide("regex", f"b{number}"))
            await asyncio.to_thread(begun.acquire)
        waiting = asyncio.create_task(tested.tokens(guided(regex="c")))
        while compiling._num_pending <= compiler.NUM_THREADS:
            await asyncio.sleep(0.01)
        compiling.close()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await waiting
        go_on.set()
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "closed" in error.value.details()
