"""When a call is tried again: by hand, and against a server that does as it is told."""

import grpc
import pytest

from serve.client.errors import (
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ServerError,
    Unavailable,
    error_of,
)
from serve.client.retry import Attempts, RetryPolicy
from serve.proto import inference_pb2 as pb
from tests.serve.client.house import ANSWER, QUICK, AsyncFace, Refusal, both_clients, scripted
from tests.serve.house import in_loop


class Hand:
    """A clock that stands where it is put, and draws that are known."""

    now, drawn = 100.0, 0.5

    def attempts(self, timeout=None, **policy):
        return Attempts(
            RetryPolicy(**policy), timeout, clock=lambda: self.now, draw=lambda: self.drawn
        )


def test_waits_grow_up_to_their_bound_and_end():
    attempts = Hand().attempts(initial_backoff=1.0, multiplier=3.0, max_backoff=5.0, max_attempts=4)
    lost = Unavailable("gone")
    assert [attempts.wait_after(lost) for _ in range(3)] == [0.75, 2.25, 3.75]
    with pytest.raises(Unavailable) as caught:
        attempts.wait_after(lost)
    assert caught.value is lost


def test_jitter_stays_in_the_upper_half():
    policy = RetryPolicy(initial_backoff=1.0)
    assert policy.backoff(1, 0.0) == 0.5
    assert policy.backoff(1, 1.0) == 1.0


def test_a_server_that_says_when_is_asked_then_and_not_earlier():
    hand = Hand()
    full = ResourceExhausted("full", retry_after=2.0)
    assert hand.attempts().wait_after(full) == pytest.approx(2.2)
    hand.drawn = 0.0
    assert hand.attempts().wait_after(full) == 2.0
    assert hand.attempts().wait_after(Unavailable("busy", retry_after=3.0)) == 3.0


@pytest.mark.parametrize(
    "error",
    [
        ResourceExhausted("full"),
        ResourceExhausted("full", retry_after=-1.0),
        Unavailable("for good", retry_after=-1.0),
        ResourceExhausted("come back tomorrow", retry_after=86_400.0),
        AlreadyExists("in use"),
        InvalidArgument("wrong"),
        NotFound("nothing"),
        Internal("broken"),
        DeadlineExceeded("late"),
    ],
)
def test_what_would_not_help_is_not_tried(error):
    with pytest.raises(type(error)) as caught:
        Hand().attempts().wait_after(error)
    assert caught.value is error


def test_an_id_in_use_after_a_lost_answer_is_our_own():
    attempts = Hand().attempts(initial_backoff=1.0)
    attempts.wait_after(Unavailable("gone"))
    assert attempts.wait_after(AlreadyExists("in use")) == 1.5


def test_no_attempt_begins_beyond_the_deadline():
    hand = Hand()
    attempts = hand.attempts(timeout=10.0, initial_backoff=4.0)
    assert attempts.timeout() == 10.0
    assert attempts.wait_after(Unavailable("gone")) == 3.0
    hand.now += 4.5
    assert attempts.timeout() == 5.5
    with pytest.raises(Unavailable):  # six seconds more
        attempts.wait_after(Unavailable("gone"))
    hand.now += 5.5
    with pytest.raises(DeadlineExceeded):
        attempts.timeout()


async def tell(asking, kind):
    """The result of a request, asked for in either way."""
    if kind == "generate":
        return await asking.ask("generate", "a")
    _, stream = await asking.stream("a")
    return stream.result


both_ways = pytest.mark.parametrize("kind", ["generate", "stream"])


@both_clients
@both_ways
@in_loop
async def test_refusals_that_pass_are_waited_for(face, kind):
    script = [Refusal("UNAVAILABLE")], [Refusal("RESOURCE_EXHAUSTED", "1")], ANSWER
    with scripted(*script) as (server, target):
        async with face(target, retry=QUICK) as asking:
            result = await tell(asking, kind)
        assert result.outputs[0].finish_reason == "stop"
        assert len({request.request_id for request in server.requests}) == 1
        assert len(server.requests) == 3
        assert server.aborted == []


@both_clients
@both_ways
@in_loop
async def test_a_call_that_met_a_port_while_it_closed_is_made_again(face, kind):
    with scripted([Refusal("CANCELLED", words="CANCELLED")], ANSWER) as (server, target):
        async with face(target, retry=QUICK) as asking:
            result = await tell(asking, kind)
        assert result.outputs[0].finish_reason == "stop"
        assert len(server.requests) == 2


@both_clients
@both_ways
@in_loop
async def test_refusals_that_stay_are_raised(face, kind):
    for refusal, error in (
        (Refusal("RESOURCE_EXHAUSTED"), ResourceExhausted),
        (Refusal("RESOURCE_EXHAUSTED", "-1"), ResourceExhausted),
        (Refusal("RESOURCE_EXHAUSTED", "soon"), ResourceExhausted),
        (Refusal("ALREADY_EXISTS"), AlreadyExists),
        (Refusal("INTERNAL"), Internal),
        (Refusal("CANCELLED"), Cancelled),
    ):
        with scripted([refusal], ANSWER) as (server, target):
            async with face(target, retry=QUICK) as asking:
                with pytest.raises(error, match="as the script says"):
                    await tell(asking, kind)
            assert len(server.requests) == 1


@both_clients
@both_ways
@in_loop
async def test_a_request_whose_answer_was_lost_is_ended_and_asked_again(face, kind):
    script = [Refusal("UNAVAILABLE")], [Refusal("ALREADY_EXISTS")], ANSWER
    with scripted(*script) as (server, target):
        async with face(target, retry=QUICK) as asking:
            result = await tell(asking, kind)
        assert result.outputs[0].finish_reason == "stop"
        assert server.aborted == [server.requests[0].request_id]


@both_clients
@in_loop
async def test_the_request_of_somebody_elses_id_is_left_alone(face):
    script = [Refusal("UNAVAILABLE")], [Refusal("ALREADY_EXISTS")], ANSWER
    with scripted(*script) as (server, target):
        async with face(target, retry=QUICK) as asking:
            await asking.ask("generate", "a", request_id="ours, says the caller")
        assert server.aborted == []
        assert {request.request_id for request in server.requests} == {"ours, says the caller"}


@both_clients
@in_loop
async def test_nothing_is_tried_again_after_an_event(face):
    with scripted([ANSWER[0], Refusal("UNAVAILABLE", "1")], ANSWER) as (server, target):
        async with face(target, retry=QUICK) as asking:
            with pytest.raises(Unavailable) as caught:
                await asking.stream("a")
        assert caught.value.retry_after == 0.001
        assert len(server.requests) == 1


@both_clients
@in_loop
async def test_the_trace_and_other_metadata_are_passed_on_at_each_attempt(face):
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with scripted([Refusal("UNAVAILABLE")], ANSWER) as (server, target):
        async with face(target, retry=QUICK, token="xyzzy") as asking:
            await asking.ask("generate", "a", traceparent=trace, metadata=(("who", "me"),))
        for metadata in server.metadata:
            assert metadata["traceparent"] == trace
            assert metadata["who"] == "me"
            assert metadata["authorization"] == "Bearer xyzzy"


@both_clients
@in_loop
async def test_an_error_of_the_servers_is_raised_after_its_event(face):
    script = [
        ANSWER[0],
        pb.GenerateEvent(error=pb.Error(code=13, message="the device failed")),
        pb.GenerateEvent(finished=pb.Finished(reason=pb.ERROR)),
    ]
    with scripted(script, script) as (_, target):
        async with face(target) as asking:
            with pytest.raises(Internal, match="the device failed"):
                await asking.stream("a")
            with pytest.raises(Internal):
                await asking.ask("generate", "a")


@in_loop
async def test_what_a_newer_server_says_besides_is_passed_over():
    unknown = pb.GenerateEvent()
    unknown.MergeFromString(b"\xfa\x3f\x02hi")  # field 1023
    with scripted([ANSWER[0], unknown, ANSWER[1]]) as (_, target):
        async with AsyncFace(target) as asking:
            events, _ = await asking.stream("a")
    assert [event.finish_reason for event in events] == ["stop"]


class Failed(grpc.RpcError):
    def __init__(self, code):
        self._code = code

    def code(self):
        return self._code

    def details(self):
        return ""

    def trailing_metadata(self):
        return None


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code.name != "OK"])
def test_each_status_has_its_class(code):
    error = error_of(Failed(code))
    assert type(error) is not ServerError
    assert (error.code, error.message) == (code, code.name)
    if code.name not in ("OUT_OF_RANGE", "ABORTED", "UNKNOWN", "DATA_LOSS"):
        assert type(error).__name__.upper() == code.name.replace("_", "")
