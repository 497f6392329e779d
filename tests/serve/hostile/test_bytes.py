"""Bytes that are no request: what gRPC cannot read is INTERNAL, and harms nobody else."""

import contextlib
import socket
import struct

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.proto import inference_pb2 as pb
from tests.serve.background import background
from tests.serve.hostile.messages import bounded, messages, mutated

SERVICE = pb.DESCRIPTOR.services_by_name["Inference"]
METHODS = {method.name: method.input_type for method in SERVICE.methods}
#: What the table of answers has for a request that is wrong, or lost among others.
ANSWERS = {
    "OK",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "FAILED_PRECONDITION",
    "RESOURCE_EXHAUSTED",
}
VALID = pb.GenerateRequest(
    request_id="fuzz",
    token_ids=pb.TokenIds(ids=[3, 1, 4]),
    sampling=pb.Sampling(temperature=0.5, seed=2**40, n=2, logit_bias={1: -1.5}, bad_words=["ab"]),
    stopping=pb.Stopping(max_tokens=5, stop=["ee"], stop_token_ids=[7]),
    output=pb.Output(logprobs=2, prompt_logprobs=0),
    cache=pb.Cache(salt="s"),
    priority=-1,
).SerializeToString()

unhurried = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def server():
    with background(max_model_len=64) as server:
        yield server
        server.assert_unharmed()


def status_of(server, method: str, data: bytes) -> str:
    """The answer to these bytes."""
    path = f"/{SERVICE.full_name}/{method}"
    if method == "GenerateStream":
        call = server.channel.unary_stream(path)
        answers = call(data, timeout=60)
        try:
            for _ in answers:
                pass
        except grpc.RpcError as error:
            return error.code().name
        return "OK"
    try:
        server.channel.unary_unary(path)(data, timeout=60)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


def is_message(method: str, data: bytes) -> bool:
    try:
        getattr(pb, METHODS[method].name).FromString(data)
    except Exception:
        return False
    return True


def assert_answered(server, method: str, data: bytes) -> None:
    status = status_of(server, method, data)
    if not is_message(method, data):
        assert status == "INTERNAL"
    else:
        assert status in ANSWERS, (method, data)


@unhurried
@given(st.sampled_from(sorted(METHODS)), st.binary(max_size=200))
def test_random_bytes_are_answered(server, method, data):
    assert_answered(server, method, data)
    server.assert_unharmed()


@unhurried
@given(st.sampled_from(["Generate", "GenerateStream"]), mutated(VALID))
def test_a_request_whose_bytes_were_changed_is_answered(server, method, data):
    if bounded(data):
        assert_answered(server, method, data)
        server.assert_unharmed()


@unhurried
@given(st.data())
def test_every_method_answers_whatever_its_message_says(server, data):
    method = data.draw(st.sampled_from(sorted(METHODS)))
    raw = data.draw(messages(METHODS[method])).SerializeToString()
    if not method.startswith("Generate") or bounded(raw):
        assert_answered(server, method, raw)
        server.assert_unharmed()


@pytest.mark.slow
@settings(
    max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_every_method_answers_for_long(server, data):
    method = data.draw(st.sampled_from(sorted(METHODS)))
    if data.draw(st.booleans()):
        raw = data.draw(messages(METHODS[method])).SerializeToString()
        raw = data.draw(mutated(raw))
        if bounded(raw):
            assert_answered(server, method, raw)
    else:
        assert_answered(server, method, data.draw(st.binary(max_size=2000)))
    server.assert_unharmed()


@pytest.mark.parametrize(
    "field", [b"\x22", b"\x32"], ids=["messages of a chat", "parameters of sampling"]
)
def test_a_request_of_too_many_small_messages_is_refused_before_they_are_made(server, field):
    size = 63 * 2**20  # of messages of two bytes each
    length = bytes([128 | size & 127, 128 | size >> 7 & 127, 128 | size >> 14 & 127, size >> 21])
    data = field + length + b"\x0a\x00" * (size // 2)
    with pytest.raises(grpc.RpcError) as caught:
        server.channel.unary_unary(f"/{SERVICE.full_name}/Generate")(data, timeout=60)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "can mean anything here" in caught.value.details()
    server.assert_unharmed()


def test_bytes_that_are_no_question_about_health_are_told_so(server):
    check = server.channel.unary_unary("/grpc.health.v1.Health/Check")
    watch = server.channel.unary_stream("/grpc.health.v1.Health/Watch")
    for answer in (lambda: check(b"\xff", timeout=60), lambda: next(watch(b"\xff", timeout=60))):
        with pytest.raises(grpc.RpcError) as caught:
            answer()
        assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert check(b"", timeout=60) == b"\x08\x01"  # SERVING
    server.assert_unharmed()


CRAFTED = {
    "token id -1 as ten bytes": (b"\x1a\x0b\x0a\x09" + b"\xff" * 8 + b"\x7f", "INVALID_ARGUMENT"),
    "invalid UTF-8 in a text": (b"\x12\x02\xff\xfe", "INTERNAL"),
    "half a surrogate pair": (b"\x12\x03\xed\xa0\x80", "INTERNAL"),
    "a varint of eleven bytes": (b"\x58" + b"\xff" * 10 + b"\x01", "INTERNAL"),
    "a length beyond the end": (b"\x12\xff\xff\xff\xff\x07a", "INTERNAL"),
    "the end of a group": (b"\x0c", "INTERNAL"),
    "10,000 groups in groups": (b"\x0b" * 10_000, "INTERNAL"),
    "an unknown prompt": (b"\xaa\x06\x01a", "INVALID_ARGUMENT"),
    "two prompts": (b"\x12\x01b" + b"\x1a\x03\x0a\x01\x03" + b"\x3a\x02\x08\x03", "OK"),
    "an unknown guide": (b"\x1a\x03\x0a\x01\x03" + b"\x52\x04\xaa\x06\x01a", None),
    "a map entry without a value": (
        b"\x1a\x03\x0a\x01\x03" + b"\x32\x04\x52\x02\x08\x01" + b"\x3a\x02\x08\x03",
        "OK",
    ),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_bytes_are_answered(server, name):
    data, status = CRAFTED[name]
    for method in ("Generate", "GenerateStream"):
        answer = status_of(server, method, data)
        assert answer == status or (status is None and answer in ANSWERS)
    server.assert_unharmed()


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS_FRAME = b"\0\0\0\4\0\0\0\0\0"
RAW = {
    "nothing": b"",
    "garbage": bytes(range(256)) * 300,
    "HTTP/1": b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "half a preface": PREFACE[:11],
    "a preface alone": PREFACE,
    "a frame of 16 MB": PREFACE + SETTINGS_FRAME + b"\xff\xff\xff\0\0\0\0\0\1" + bytes(4096),
    "headers that do not decode": PREFACE + SETTINGS_FRAME + b"\0\0\4\1\5\0\0\0\1\xff\xff\xff\xff",
    "data for no stream": PREFACE + SETTINGS_FRAME + b"\0\0\4\0\0\0\0\0\7abcd",
    "a window of zero": PREFACE + SETTINGS_FRAME + b"\0\0\4\x08\0\0\0\0\0\0\0\0\0",
}


@pytest.mark.parametrize("name", RAW)
def test_what_is_no_grpc_harms_only_its_own_connection(server, name):
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(RAW[name])
        server.assert_unharmed()
        with contextlib.suppress(OSError):  # it may have gone already
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
    server.assert_unharmed()


def test_a_flood_of_pings_is_told_to_calm_down_and_nobody_else_is(server):
    ping = b"\0\0\x08\6\0\0\0\0\0" + struct.pack(">q", 7)
    host, _, port = server.address.rpartition(":")
    received = b""
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(PREFACE + SETTINGS_FRAME + ping * 500)
        with contextlib.suppress(ConnectionResetError):
            while data := connection.recv(65536):
                received += data
    assert b"too_many_pings" in received
    server.assert_unharmed()
