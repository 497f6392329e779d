"""What a client is told: the status of each exception, and the words."""

import asyncio

import grpc
import pytest

from jaxinfer.errors import InvalidParameter
from serve.proto import inference_pb2 as pb
from serve.statuses import _TABLE, MAX_MESSAGE, MAX_MESSAGE_BYTES, message_of
from tests.serve.house import CANARY, LONG, ServeHouse, in_loop, served
from tests.serve.http.house import error_of, http_served
from tests.serve.rpc.test_inference import refused

#: By class: the status of gRPC, that of HTTP with the type of the error, and the seconds after
#: which it may be tried again.
EXPECTED = {
    "UsageError": ("INVALID_ARGUMENT", 400, "invalid_request_error", None),
    "CheckpointError": ("INVALID_ARGUMENT", 400, "invalid_request_error", None),
    "NotFound": ("NOT_FOUND", 404, "not_found_error", None),
    "ModelNotFound": ("NOT_FOUND", 404, "not_found_error", None),
    "DuplicateRequest": ("ALREADY_EXISTS", 409, "conflict_error", None),
    "Unsupported": ("FAILED_PRECONDITION", 400, "invalid_request_error", None),
    "UnsatisfiableGuide": ("FAILED_PRECONDITION", 400, "invalid_request_error", None),
    "CapacityError": ("RESOURCE_EXHAUSTED", 429, "rate_limit_error", 1),
    "SlowReader": ("RESOURCE_EXHAUSTED", 429, "rate_limit_error", None),
    "TooLarge": ("RESOURCE_EXHAUSTED", 413, "invalid_request_error", None),
    "DeadlinePassed": ("DEADLINE_EXCEEDED", 504, "timeout_error", None),
    "TimeoutError": ("DEADLINE_EXCEEDED", 504, "timeout_error", None),
    "Aborted": ("CANCELLED", 499, "request_cancelled", None),
    "Unauthenticated": ("UNAUTHENTICATED", 401, "authentication_error", None),
    "Forbidden": ("PERMISSION_DENIED", 403, "permission_error", None),
    "Draining": ("UNAVAILABLE", 503, "service_unavailable_error", None),
    "Asleep": ("UNAVAILABLE", 503, "service_unavailable_error", None),
    "EngineClosed": ("UNAVAILABLE", 503, "service_unavailable_error", None),
    "StepFailed": ("INTERNAL", 500, "internal_error", None),
    "Exception": ("INTERNAL", 500, "internal_error", None),
}
ENDLESS = pb.GenerateRequest(
    request_id="endless",
    token_ids=pb.TokenIds(ids=[3]),
    stopping=pb.Stopping(max_tokens=LONG - 100, ignore_eos=True),
)


@pytest.mark.parametrize(
    ("character", "num_bytes"), [("a", 1), ("%", 3), ("é", 6), ("漢", 9), ("🙂", 12)]
)
@in_loop
async def test_a_message_in_any_language_arrives(character, num_bytes, monkeypatch):
    message = character * 2000
    expected = character * min(MAX_MESSAGE, MAX_MESSAGE_BYTES // num_bytes)
    assert message_of(InvalidParameter(message)) == expected

    async def refuse(*_):
        raise InvalidParameter(message)

    async with served() as tested:
        monkeypatch.setattr(tested.server.frontend, "generate", refuse)
        for call in (tested.tokens(), tested.events(CANARY)):
            assert (await refused(call)).details() == expected


def test_half_a_surrogate_pair_is_shown_as_a_question_mark():
    assert message_of(InvalidParameter("a \ud800 b")) == "a ? b"


def test_a_message_is_one_line():
    assert message_of(InvalidParameter("a\n  b\tc")) == "a b c"


def test_the_table_has_these_rows_and_no_others():
    kinds = [kind for kind, _ in _TABLE]
    assert len(kinds) == len(set(kinds))
    assert {kind.__name__ for kind in kinds} == set(EXPECTED), "say in EXPECTED what clients get"


@pytest.mark.parametrize("kind", [kind for kind, _ in _TABLE], ids=lambda kind: kind.__name__)
@in_loop
async def test_each_row_arrives_over_both_protocols(kind, monkeypatch):
    code, http, name, seconds = EXPECTED[kind.__name__]

    async def refuse(*_):
        raise kind("no")

    async with http_served() as tested:
        monkeypatch.setattr(tested.server.frontend, "generate", refuse)
        pushback = () if seconds is None else (("grpc-retry-pushback-ms", str(1000 * seconds)),)
        for call in (tested.tokens(), ServeHouse.events(tested, CANARY)):
            error = await refused(call)
            assert error.code().name == code
            told = [pair for pair in error.trailing_metadata() if "pushback" in pair[0]]
            assert tuple(told) == pushback
        for stream in (False, True):
            response = await tested.post({"prompt": [1], "stream": stream})
            assert (response.status_code, error_of(response)["type"]) == (http, name)
            assert response.headers.get("retry-after") == (
                None if seconds is None else f"{seconds}"
            )


@in_loop
async def test_who_is_aborted_by_somebody_else_is_told_so():
    async with http_served(max_num_seqs=1) as tested:
        first = asyncio.create_task(ServeHouse.events(tested, ENDLESS))
        while not tested.engine.num_running:
            await asyncio.sleep(0.005)
        score = pb.ScoreRequest(request_id="scored", token_ids=pb.TokenIds(ids=[1, 2, 3]))
        scored = asyncio.ensure_future(refused(tested.stub.Score(score)))
        posted = asyncio.create_task(tested.post({"prompt": [1], "request_id": "posted"}))
        while tested.engine.num_waiting < 2:
            await asyncio.sleep(0.005)
        for request_id in ("scored", "cmpl-posted", "endless"):
            await tested.stub.Abort(pb.AbortRequest(request_id=request_id))
        error, response = await scored, await posted
        assert error.code() is grpc.StatusCode.CANCELLED
        assert error.details() == "request_id 'scored' was aborted"
        assert response.status_code == 499
        assert error_of(response)["message"] == "request_id 'cmpl-posted' was aborted"
        assert error_of(response)["type"] == "request_cancelled"
        assert (await first)[-1].finished.reason == pb.ABORT
