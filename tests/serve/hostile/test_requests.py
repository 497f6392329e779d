"""Requests that mean harm, or nothing: each gets its answer, and the next one gets its own."""

import math
import struct

import grpc
import pytest

from jaxinfer.sampling_params import RequestLimits, SamplingParams
from serve.bounds import require_sendable
from serve.proto import inference_pb2 as pb
from serve.settings import ServeSettings
from tests.engine.house import VOCAB
from tests.serve.background import background

MAX_LEN = 200
#: The smallest number above 0 that a float of the wire can say.
DENORMAL = struct.unpack("<f", b"\1\0\0\0")[0]
FLOATS = {
    "temperature": (0.0, math.inf),
    "top_p": (DENORMAL, 1.0),
    "min_p": (0.0, 1.0),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
    "repetition_penalty": (DENORMAL, math.inf),
}
ODD_FLOATS = {
    "nan": math.nan,
    "inf": math.inf,
    "-inf": -math.inf,
    "denormal": DENORMAL,
    "-denormal": -DENORMAL,
    "-0.0": -0.0,
    "1+eps": 1 + 2**-23,
    "2+eps": 2 + 2**-22,
    "max": 3.4028234663852886e38,
}


def sampling(**fields) -> pb.GenerateRequest:
    return _request(sampling=pb.Sampling(**fields))


def stopping(**fields) -> pb.GenerateRequest:
    return _request(stopping=pb.Stopping(**fields))


def prompt(*ids: int) -> pb.GenerateRequest:
    return _request(token_ids=pb.TokenIds(ids=ids))


def _request(**fields) -> pb.GenerateRequest:
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[3, 1, 4]))
    request.MergeFrom(pb.GenerateRequest(stopping=pb.Stopping(max_tokens=6, ignore_eos=True)))
    given = pb.GenerateRequest(**fields)
    if given.HasField("token_ids"):
        request.ClearField("token_ids")
    request.MergeFrom(given)
    return request


def bare(**fields) -> pb.GenerateRequest:
    return pb.GenerateRequest(stopping=pb.Stopping(max_tokens=6), **fields)


#: Input: request, status, and words of the message (or the number of tokens of the answer).
GENERATE = {
    "no prompt": (bare(), "INVALID_ARGUMENT", "no prompt"),
    "empty text": (bare(text=""), "INVALID_ARGUMENT", "the prompt is empty"),
    "empty prompt": (prompt(), "INVALID_ARGUMENT", "the prompt is empty"),
    "empty chat": (bare(chat=pb.ChatMessages()), "INVALID_ARGUMENT", "messages"),
    "prompt of max_len - 1": (prompt(*[1] * (MAX_LEN - 1)), "OK", 1),
    "prompt of max_len": (prompt(*[1] * MAX_LEN), "INVALID_ARGUMENT", "at most 199"),
    "prompt of max_len + 1": (prompt(*[1] * (MAX_LEN + 1)), "INVALID_ARGUMENT", "at most 199"),
    "prompt of 1e6 ids": (prompt(*[1] * 10**6), "INVALID_ARGUMENT", "1000000 tokens"),
    "text of max_len": (bare(text="a" * MAX_LEN), "INVALID_ARGUMENT", "at most 199"),
    "text of 60 MB": (bare(text="a" * 60_000_000), "INVALID_ARGUMENT", "60000009 bytes"),
    "text of 6 MB": (bare(text="a" * 6_000_000), "INVALID_ARGUMENT", "6000000 characters"),
    "chat of 6 MB": (
        bare(
            chat=pb.ChatMessages(
                messages=[pb.ChatMessage(role="user", content="a" * 3_000_000)] * 2
            )
        ),
        "INVALID_ARGUMENT",
        "6000000 characters",
    ),
    "chat of 1e5 messages": (
        bare(chat=pb.ChatMessages(messages=[pb.ChatMessage(role="user", content="a")] * 100_000)),
        "INVALID_ARGUMENT",
        "100000 entries",
    ),
    "id vocab": (prompt(VOCAB), "INVALID_ARGUMENT", "from 0 to 11"),
    "id vocab + padding": (prompt(VOCAB + 52), "INVALID_ARGUMENT", "from 0 to 11"),
    "id 2^31": (prompt(1, 2**31), "INVALID_ARGUMENT", "prompt_token_ids[1] = 2147483648"),
    "id 2^32 - 1": (prompt(2**32 - 1), "INVALID_ARGUMENT", "4294967295"),
    "another model": (_request(model="gpt"), "NOT_FOUND", "'tiny' is"),
    "model of 1 MB": (_request(model="x" * 10**6), "NOT_FOUND", "model 'xxx"),
    "request_id of 1 MB": (_request(request_id="x" * 10**6), "INVALID_ARGUMENT", "1000000"),
    "request_id of 257": (_request(request_id="x" * 257), "INVALID_ARGUMENT", "at most 256"),
    "request_id of 256": (_request(request_id="\0" * 256), "OK", 6),
    "salt of 1 MB": (_request(cache=pb.Cache(salt="x" * 10**6)), "INVALID_ARGUMENT", "cache.salt"),
    "priority 2^31 - 1": (_request(priority=2**31 - 1), "OK", 6),
    "priority -2^31": (_request(priority=-(2**31)), "OK", 6),
    "top_k > vocab": (sampling(top_k=VOCAB + 1), "OK", 6),
    "top_k 2^32 - 1": (sampling(top_k=2**32 - 1), "OK", 6),
    "seed 2^64 - 1": (sampling(seed=2**64 - 1), "OK", 6),
    "n 0": (sampling(n=0), "INVALID_ARGUMENT", "n = 0"),
    "n 129": (sampling(n=129), "INVALID_ARGUMENT", "n = 129"),
    "n 1e9": (sampling(n=10**9), "INVALID_ARGUMENT", "n = 1000000000"),
    "n 2^32 - 1": (sampling(n=2**32 - 1), "INVALID_ARGUMENT", "n = 4294967295"),
    "bias of no id": (sampling(logit_bias={VOCAB: 1}), "INVALID_ARGUMENT", "logit_bias"),
    "bias of 2^32 - 1": (sampling(logit_bias={2**32 - 1: 1}), "INVALID_ARGUMENT", "logit_bias"),
    "5,000 biases": (
        sampling(logit_bias=dict.fromkeys(range(5000), 0)),
        "INVALID_ARGUMENT",
        "at most 4096",
    ),
    "1e5 biases": (
        sampling(logit_bias=dict.fromkeys(range(100_000), 0)),
        "INVALID_ARGUMENT",
        "100000 entries",
    ),
    "allowed id vocab": (sampling(allowed_token_ids=[VOCAB]), "INVALID_ARGUMENT", "allowed_token"),
    "5,000 allowed ids": (
        sampling(allowed_token_ids=[1] * 5000),
        "INVALID_ARGUMENT",
        "at most 4096",
    ),
    "1e6 allowed ids": (
        sampling(allowed_token_ids=[1] * 10**6),
        "INVALID_ARGUMENT",
        "1000000 entries",
    ),
    "257 bad words": (sampling(bad_words=["a"] * 257), "INVALID_ARGUMENT", "at most 256"),
    "empty bad word": (sampling(bad_words=[""]), "INVALID_ARGUMENT", "not empty"),
    "1 MB bad word": (sampling(bad_words=["a" * 10**6]), "INVALID_ARGUMENT", "at most 256 bytes"),
    "max_tokens 0": (stopping(max_tokens=0), "INVALID_ARGUMENT", "max_tokens = 0"),
    "max_tokens 2^32 - 1": (stopping(max_tokens=2**32 - 1), "OK", MAX_LEN - 3),
    "min_tokens > max_tokens": (
        stopping(min_tokens=7),
        "INVALID_ARGUMENT",
        "at most max_tokens = 6",
    ),
    "min_tokens 2^32 - 1": (
        stopping(min_tokens=2**32 - 1),
        "INVALID_ARGUMENT",
        "min_tokens = 4294967295",
    ),
    "empty stop": (stopping(stop=[""]), "INVALID_ARGUMENT", "not empty"),
    "17 stops": (stopping(stop=["x"] * 17), "INVALID_ARGUMENT", "at most 16"),
    "stop of 257 bytes": (stopping(stop=["é" * 129]), "INVALID_ARGUMENT", "at most 256 bytes"),
    "1e5 stops": (stopping(stop=["x"] * 10**5), "INVALID_ARGUMENT", "100000 entries"),
    "1 MB stop": (stopping(stop=["x" * 10**6]), "INVALID_ARGUMENT", "1000000 characters"),
    "stop id vocab": (stopping(stop_token_ids=[VOCAB]), "INVALID_ARGUMENT", "stop_token_ids"),
    "1e6 stop ids": (
        stopping(stop_token_ids=[1] * 10**6),
        "INVALID_ARGUMENT",
        "1000000 entries",
    ),
    "stop without text": (
        _request(stopping=pb.Stopping(stop=["x"]), output=pb.Output(token_ids_only=True)),
        "INVALID_ARGUMENT",
        "stop",
    ),
    "21 log-probabilities": (
        _request(output=pb.Output(logprobs=21)),
        "INVALID_ARGUMENT",
        "between 0 and 20",
    ),
    "2^32 - 1 log-probabilities": (
        _request(output=pb.Output(prompt_logprobs=2**32 - 1)),
        "INVALID_ARGUMENT",
        "between 0 and 20",
    ),
    "log-probabilities on a long prompt": (
        _request(token_ids=pb.TokenIds(ids=[1] * 190), output=pb.Output(prompt_logprobs=3)),
        "INVALID_ARGUMENT",
        "bytes: at most 262,144 are allowed",
    ),
}


@pytest.fixture(scope="module")
def server():
    limits = RequestLimits(max_prompt_logprobs_bytes=2**18)
    with background(max_model_len=MAX_LEN, request=limits) as server:
        yield server
        server.assert_unharmed()


def stream_of(server, request) -> tuple[str, str, int]:
    """Status, message, and how many tokens came."""
    count = 0
    try:
        for event in server.stub.GenerateStream(request, timeout=60):
            count += len(event.delta.token_ids)
    except grpc.RpcError as error:
        assert count == 0
        return error.code().name, error.details(), 0
    return "OK", "", count


def answer_of(server, request) -> tuple[str, str, int]:
    """The same of all at once."""
    try:
        response = server.stub.Generate(request, timeout=60)
    except grpc.RpcError as error:
        return error.code().name, error.details(), 0
    return "OK", "", len(response.outputs[0].token_ids)


def assert_answer(answer, status, expected) -> None:
    code, message, count = answer
    assert code == status, message
    if status == "OK":
        assert count == expected
    else:
        assert expected in message
        assert len(message) <= 1000


@pytest.mark.parametrize("name", GENERATE)
def test_what_is_asked_gets_its_answer(server, name):
    request, status, expected = GENERATE[name]
    assert_answer(answer_of(server, request), status, expected)
    assert_answer(stream_of(server, request), status, expected)
    server.assert_unharmed()


@pytest.mark.parametrize("name", FLOATS)
def test_every_float_is_finite_and_in_its_range(server, name):
    least, most = FLOATS[name]
    for value in ODD_FLOATS.values():
        is_allowed = math.isfinite(value) and least <= value <= most
        status, expected = ("OK", 6) if is_allowed else ("INVALID_ARGUMENT", name)
        assert_answer(answer_of(server, sampling(**{name: value})), status, expected)
    server.assert_unharmed()


def test_every_bias_is_finite_and_in_its_range(server):
    for value in (*ODD_FLOATS.values(), 100 + 2**-16):
        is_allowed = math.isfinite(value) and abs(value) <= 100
        status, expected = ("OK", 6) if is_allowed else ("INVALID_ARGUMENT", "logit_bias[1]")
        assert_answer(answer_of(server, sampling(logit_bias={1: value})), status, expected)
    server.assert_unharmed()


OTHERS = {
    "nothing to tokenize": ("Tokenize", pb.TokenizeRequest(), "INVALID_ARGUMENT", "set text"),
    "tokenize for another": (
        "Tokenize",
        pb.TokenizeRequest(text="a", model="gpt"),
        "NOT_FOUND",
        "'tiny' is",
    ),
    "tokenize 2 MB": (
        "Tokenize",
        pb.TokenizeRequest(text="a" * 2**21),
        "INVALID_ARGUMENT",
        "at most 1048576",
    ),
    "tokenize an empty chat": (
        "Tokenize",
        pb.TokenizeRequest(chat=pb.ChatMessages()),
        "INVALID_ARGUMENT",
        "messages",
    ),
    "detokenize vocab": (
        "Detokenize",
        pb.DetokenizeRequest(token_ids=[VOCAB]),
        "INVALID_ARGUMENT",
        "from 0 to 11",
    ),
    "detokenize 1e6 ids": (
        "Detokenize",
        pb.DetokenizeRequest(token_ids=[1] * 10**6),
        "INVALID_ARGUMENT",
        "1000000 tokens",
    ),
    "score nothing": ("Score", pb.ScoreRequest(), "INVALID_ARGUMENT", "no prompt"),
    "score 1e6 ids": (
        "Score",
        pb.ScoreRequest(text="ab", continuation_token_ids=pb.TokenIds(ids=[1] * 10**6)),
        "INVALID_ARGUMENT",
        "1000000 tokens",
    ),
    "score a text of 6 MB": (
        "Score",
        pb.ScoreRequest(text="a" * 6_000_000),
        "INVALID_ARGUMENT",
        "6000000 characters",
    ),
    "score id 2^31": (
        "Score",
        pb.ScoreRequest(token_ids=pb.TokenIds(ids=[1, 2**31])),
        "INVALID_ARGUMENT",
        "2147483648",
    ),
    "abort nobody": ("Abort", pb.AbortRequest(), "NOT_FOUND", "no request of that id"),
    "abort 1 MB": ("Abort", pb.AbortRequest(request_id="x" * 10**6), "NOT_FOUND", "xxx"),
    "facts of another": (
        "GetModelInfo",
        pb.GetModelInfoRequest(model="gpt"),
        "NOT_FOUND",
        "'tiny' is",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_asked_of_other_methods_gets_its_answer(server, name):
    method, request, status, words = OTHERS[name]
    with pytest.raises(grpc.RpcError) as caught:
        getattr(server.stub, method)(request, timeout=60)
    assert_answer((caught.value.code().name, caught.value.details(), 0), status, words)
    server.assert_unharmed()


def test_a_request_with_ballast_is_refused(server):
    ballast = bytes([0xFA, 0x7F]) + b"\x80\x80\x80\x10" + bytes(2**25)  # field 2047: 32 MiB
    request = pb.GenerateRequest.FromString(_request().SerializeToString() + ballast)
    answer = answer_of(server, request)
    assert_answer(answer, "INVALID_ARGUMENT", "of which at most")
    server.assert_unharmed()


def test_a_message_beyond_64_mib_is_refused(server):
    request = _request()
    request.text = "a" * 2**26
    request.text = "a" * (2**26 + 2**26 + 1 - request.ByteSize())
    assert request.ByteSize() == 64 * 2**20 + 1
    assert_answer(answer_of(server, request), "RESOURCE_EXHAUSTED", "larger than max")
    server.assert_unharmed()


NO_ROOM = {
    "n and its log-probabilities": (
        _request(sampling=pb.Sampling(n=5), output=pb.Output(logprobs=20)),
        "n = 5 outputs of up to 6 tokens with logprobs = 20 may take",
        5 * 6,
    ),
    "n and its tokens": (
        _request(sampling=pb.Sampling(n=8), stopping=pb.Stopping(max_tokens=170, ignore_eos=True)),
        "n = 8 outputs of up to 170 tokens may take 21760 bytes",
        8 * 170,
    ),
    "n and its prompt": (
        _request(
            sampling=pb.Sampling(n=2),
            token_ids=pb.TokenIds(ids=[1] * 80),
            output=pb.Output(logprobs=20, prompt_logprobs=3),
        ),
        "n = 2 outputs of up to 6 tokens with logprobs = 20 may take",
        2 * 6,
    ),
    "log-probabilities of a prompt": (
        _request(token_ids=pb.TokenIds(ids=[1] * 190), output=pb.Output(prompt_logprobs=3)),
        "prompt_logprobs = 3 of 190 tokens may take 24192 bytes",
        None,
    ),
}


@pytest.fixture(scope="module")
def narrow():
    with background(ServeSettings(grpc_port=0, max_message_bytes=2**14), max_model_len=200) as it:
        yield it


@pytest.mark.parametrize("name", NO_ROOM)
def test_what_fits_into_no_message_is_refused_before_it_is_made(narrow, name):
    request, words, num_streamed = NO_ROOM[name]
    num_tokens = narrow.tested.house.stats.num_generated_tokens
    answers = [answer_of(narrow, request)]
    if num_streamed is None:
        answers.append(stream_of(narrow, request))
    for answer in answers:
        assert_answer(answer, "INVALID_ARGUMENT", words)
        assert "one message has at most 16384" in answer[1]
    assert narrow.tested.house.stats.num_generated_tokens == num_tokens
    if num_streamed is not None:
        assert stream_of(narrow, request) == ("OK", "", num_streamed)
    narrow.assert_unharmed()


def test_what_turns_out_to_fit_into_no_message_is_told_so(narrow):
    request = pb.TokenizeRequest(text="b" * (2**14 - 4))
    assert request.ByteSize() < 2**14  # and as many tokens, and the length of the context
    with pytest.raises(grpc.RpcError) as caught:
        narrow.stub.Tokenize(request, timeout=60)
    answer = (caught.value.code().name, caught.value.details(), 0)
    assert_answer(answer, "INVALID_ARGUMENT", "one message has at most 16384")
    narrow.assert_unharmed()


def test_ordinary_requests_are_never_too_long_for_a_message():
    for most in (64 * 2**20, 16 * 2**20):  # as it comes, and of configs/serve/production.toml
        for params, prompt_len, max_model_len in (
            (SamplingParams(n=128, max_tokens=None), 1, 8192),
            (SamplingParams(n=8, max_tokens=None), 1, 131_072),
            (SamplingParams(n=1, max_tokens=None, logprobs=1), 1, 131_072),
            (SamplingParams(n=16, max_tokens=1024, logprobs=20), 1024, 32_768),
            (SamplingParams(prompt_logprobs=20, max_tokens=16), 24_000, 32_768),
            (SamplingParams(prompt_logprobs=0, max_tokens=1), 131_071, 131_072),
        ):
            require_sendable(params, prompt_len, max_model_len, most)


@pytest.mark.parametrize("timeout", [0, -1, 1e-9])
def test_a_deadline_that_has_passed_leaves_nothing(server, timeout):
    with pytest.raises(grpc.RpcError) as caught:
        server.stub.Generate(_request(), timeout=timeout)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    server.assert_unharmed()
