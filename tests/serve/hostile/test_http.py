"""The same over HTTP: bodies that mean harm, or nothing; a canary after each."""

import json
import socket

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxinfer.sampling_params import RequestLimits
from serve.openai.bodies import ChatBody, CompletionBody
from serve.openai.validation import REFUSED
from serve.settings import ServeSettings
from tests.engine.house import VOCAB
from tests.serve.background import background

MAX_LEN = 200
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
BASE = {"prompt": [3, 1, 4], "max_tokens": 6, "ignore_eos": True, "return_token_ids": True}
DENORMAL = 1e-45

#: Input: changes of the body, status, and words of the message (or the number of tokens).
BODIES = {
    "no prompt": ({"prompt": None}, 400, "prompt"),
    "empty text": ({"prompt": ""}, 400, "the prompt is empty"),
    "empty prompt": ({"prompt": []}, 400, "prompt is empty"),
    "257 prompts": ({"prompt": ["a"] * 257}, 400, "at most 256"),
    "prompts in prompts": ({"prompt": [[[1]]]}, 400, "prompt[0]"),
    "prompt of max_len - 1": ({"prompt": [1] * (MAX_LEN - 1)}, 200, 1),
    "prompt of max_len": ({"prompt": [1] * MAX_LEN}, 400, "at most 199"),
    "prompt of 1e6 ids": ({"prompt": [1] * 10**6}, 400, "1000000 tokens"),
    "text of 30 MB": ({"prompt": "a" * 30_000_000}, 400, "30000000 characters"),
    "id -1": ({"prompt": [-1]}, 400, "from 0 to 11"),
    "id vocab": ({"prompt": [VOCAB]}, 400, "from 0 to 11"),
    "id vocab + padding": ({"prompt": [VOCAB + 52]}, 400, "from 0 to 11"),
    "id 2^31": ({"prompt": [1, 2**31]}, 400, "2147483648"),
    "id 2^32 - 1": ({"prompt": [2**32 - 1]}, 400, "4294967295"),
    "id 2^64": ({"prompt": [2**64]}, 400, "18446744073709551616"),
    "id 1.5": ({"prompt": [1.5]}, 400, "prompt"),
    "id true": ({"prompt": [1, True]}, 400, "prompt"),
    "another model": ({"model": "gpt"}, 404, "'tiny' is"),
    "request_id of 1 MB": ({"request_id": "x" * 10**6}, 400, "request_id"),
    "salt of 1 MB": ({"cache_salt": "x" * 10**6}, 400, "salt"),
    "priority 2^70": ({"priority": 2**70}, 200, 6),
    "priority of a text": ({"priority": "high"}, 400, "priority"),
    "temperature of a text": ({"temperature": "1"}, 400, "temperature"),
    "temperature -1": ({"temperature": -1}, 400, "temperature"),
    "temperature -0.0": ({"temperature": -0.0}, 200, 6),
    "temperature denormal": ({"temperature": DENORMAL}, 200, 6),
    "temperature 1e308": ({"temperature": 1e308}, 200, 6),
    "top_p 0": ({"top_p": 0}, 400, "top_p"),
    "top_p 1 + epsilon": ({"top_p": 1 + 1e-15}, 400, "top_p"),
    "top_p -0.0": ({"top_p": -0.0}, 400, "top_p"),
    "top_p denormal": ({"top_p": DENORMAL}, 200, 6),
    "min_p 1 + epsilon": ({"min_p": 1 + 1e-15}, 400, "min_p"),
    "presence 2 + epsilon": ({"presence_penalty": 2 + 1e-15}, 400, "presence_penalty"),
    "frequency -2 - epsilon": ({"frequency_penalty": -2 - 1e-15}, 400, "frequency_penalty"),
    "repetition 0": ({"repetition_penalty": 0}, 400, "repetition_penalty"),
    "repetition denormal": ({"repetition_penalty": DENORMAL}, 200, 6),
    "top_k > vocab": ({"top_k": VOCAB + 1}, 200, 6),
    "top_k 2^70": ({"top_k": 2**70}, 200, 6),
    "top_k -2": ({"top_k": -2}, 400, "top_k"),
    "seed 2^64": ({"seed": 2**64}, 400, "seed"),
    "n 0": ({"n": 0}, 400, "n = 0"),
    "n 1e9": ({"n": 10**9}, 400, "n = 1000000000"),
    "n -1": ({"n": -1}, 400, "n = -1"),
    "max_tokens 0": ({"max_tokens": 0}, 400, "max_tokens = 0"),
    "max_tokens -1": ({"max_tokens": -1}, 400, "max_tokens = -1"),
    "max_tokens 2^70": ({"max_tokens": 2**70}, 200, MAX_LEN - 3),
    "min_tokens > max_tokens": ({"min_tokens": 7}, 400, "at most max_tokens = 6"),
    "empty stop": ({"stop": ""}, 400, "not empty"),
    "17 stops": ({"stop": ["x"] * 17}, 400, "at most 16"),
    "stop of 257 bytes": ({"stop": "é" * 129}, 400, "at most 256 bytes"),
    "1e5 stops": ({"stop": ["x"] * 10**5}, 400, "100000 items"),
    "1 MB stop": ({"stop": "x" * 10**6}, 400, "1000000 characters"),
    "stop id vocab": ({"stop_token_ids": [VOCAB]}, 400, "stop_token_ids"),
    "bias of no id": ({"logit_bias": {"a": 1}}, 400, "logit_bias"),
    "bias of 2^70": ({"logit_bias": {str(2**70): 1}}, 400, "logit_bias"),
    "bias of 101": ({"logit_bias": {"1": 101}}, 400, "logit_bias[1]"),
    "5,000 biases": ({"logit_bias": {str(n): 0 for n in range(5000)}}, 400, "at most 4096"),
    "allowed id vocab": ({"allowed_token_ids": [VOCAB]}, 400, "allowed_token"),
    "1e6 allowed ids": ({"allowed_token_ids": [1] * 10**6}, 400, "1000000 items"),
    "257 bad words": ({"bad_words": ["a"] * 257}, 400, "at most 256"),
    "21 log-probabilities": ({"logprobs": 21}, 400, "between 0 and 20"),
    "log-probabilities on a long prompt": (
        {"prompt": [1] * 190, "echo": True, "logprobs": 3},
        400,
        "bytes: at most 262,144 are allowed",
    ),
    "an unknown field": ({"frobnicate": 1}, 400, "frobnicate is not a field"),
}

RAW = {
    "nothing": (b"", 400),
    "no JSON": (b"}{", 400),
    "a list": (b"[]", 400),
    "a text": (b'"a"', 400),
    "NaN": (b'{"prompt":[1],"temperature":NaN}', 400),
    "Infinity": (b'{"prompt":[1],"temperature":-Infinity}', 400),
    "1e999": (b'{"prompt":[1],"temperature":1e999}', 400),
    "an integer of 10,000 digits": (b'{"prompt":[1],"top_k":' + b"9" * 10_000 + b"}", 400),
    "10,000 deep": (b'{"prompt":' + b"[" * 10_000 + b"]" * 10_000 + b"}", 400),
    "10,000 objects deep": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, 400),
    "invalid UTF-8": (b'{"prompt":"\xff\xfe"}', 400),
    "half a surrogate pair": (b'{"prompt":"\\ud800"}', None),
    "a key twice": (b'{"prompt":[1],"prompt":[99],"max_tokens":1}', 400),
    "a NUL": (b'{"prompt":[1],"max_tokens":1,"request_id":"a\\u0000b"}', None),
    "64 MiB + 1": (b'{"prompt":"' + b"a" * (64 * 2**20 - 12) + b'"}', 413),
}


@pytest.fixture(scope="module")
def server():
    limits = RequestLimits(max_prompt_logprobs_bytes=2**18)
    both = ServeSettings(grpc_port=0, http_port=0)
    with background(both, max_model_len=MAX_LEN, request=limits) as server:
        address = f"http://127.0.0.1:{server.tested.server.http_port}"
        with httpx.Client(base_url=address, timeout=60) as server.client:
            yield server
        server.assert_unharmed()


def error_of(response: httpx.Response) -> str:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error["message"]


@pytest.mark.parametrize("name", BODIES)
def test_what_a_body_asks_gets_its_answer(server, name):
    changes, status, expected = BODIES[name]
    response = server.client.post(COMPLETIONS, json=BASE | changes)
    assert response.status_code == status, response.text
    if status == 200:
        assert len(response.json()["choices"][0]["token_ids"]) == expected
    else:
        assert expected in error_of(response)
        streamed = server.client.post(COMPLETIONS, json=BASE | changes | {"stream": True})
        assert (streamed.status_code, error_of(streamed)) == (status, error_of(response))
    server.assert_unharmed()


@pytest.mark.parametrize("name", RAW)
@pytest.mark.parametrize("path", [COMPLETIONS, "/tokenize"])
def test_bytes_that_are_no_body_are_told_so(server, path, name):
    body, status = RAW[name]
    if len(body) > 2**20 and path != COMPLETIONS:
        pytest.skip("once is enough")
    response = server.client.post(path, content=body)
    assert response.status_code < 500
    if path == COMPLETIONS and status is not None:
        assert response.status_code == status, response.text
    if response.status_code != 200:
        assert error_of(response)
    server.assert_unharmed()


CHATS = {
    "no messages": [],
    "a message of a text": ["a"],
    "a message without a role": [{"content": "a"}],
    "a message without content": [{"role": "user"}],
    "content of numbers": [{"role": "user", "content": 1}],
    "a part of an image": [{"role": "user", "content": [{"type": "image_url"}]}],
    "11,000 messages": [{"role": "user", "content": "a"}] * 11_000,
    "11,000 parts": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 11_000}],
    "30 MB": [{"role": "user", "content": "a" * 15_000_000}] * 2,
}


@pytest.mark.parametrize("name", CHATS)
def test_conversations_that_are_none_are_told_so(server, name):
    for path in (CHAT, "/tokenize"):
        response = server.client.post(path, json={"messages": CHATS[name]})
        assert response.status_code == 400, response.text
        assert error_of(response)
    server.assert_unharmed()


TOKENS = {
    "nothing": {},
    "both": {"prompt": "a", "messages": [{"role": "user", "content": "a"}]},
    "2 MB": {"prompt": "a" * 2**21},
    "ids beyond": {"tokens": [VOCAB]},
    "ids below": {"tokens": [-1]},
    "1e6 ids": {"tokens": [1] * 10**6},
}


@pytest.mark.parametrize("name", TOKENS)
def test_what_is_no_text_and_no_tokens_is_told_so(server, name):
    path = "/detokenize" if "tokens" in TOKENS[name] else "/tokenize"
    response = server.client.post(path, json=TOKENS[name])
    assert response.status_code == 400, response.text
    assert error_of(response)
    server.assert_unharmed()


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(-2, 20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
fields = st.sampled_from(
    sorted({*CompletionBody.model_fields, *ChatBody.model_fields, *REFUSED, "tokens"})
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    path=st.sampled_from([COMPLETIONS, CHAT, "/tokenize", "/detokenize"]),
    body=st.dictionaries(fields, values, max_size=4),
    is_based=st.booleans(),
)
def test_whatever_a_body_holds_is_answered(server, path, body, is_based):
    if is_based:
        body = ({"prompt": [3, 1, 4]} if path != CHAT else {"messages": []}) | body
    raw = json.dumps({"max_tokens": 3} | body, ensure_ascii=True)
    response = server.client.post(path, content=raw.encode())
    assert response.status_code < 500, (raw, response.text)
    server.assert_unharmed()


SOCKETS = {
    "garbage": bytes(range(256)) * 300,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    "half a request": b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{",
    "two lengths": b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n"
    b"Content-Length: 3\r\n\r\n{}",
    "a length that is none": b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n"
    b"Content-Length: -1\r\n\r\n",
    "a chunk that lies": b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked"
    b"\r\n\r\nffffffffffffffff\r\n{}",
    "headers of 1 MB": b"GET /health HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 2**20 + b"\r\n\r\n",
    "100,000 headers": b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 100_000 + b"\r\n",
}


@pytest.mark.parametrize("name", SOCKETS)
def test_what_is_no_http_harms_only_its_own_connection(server, name):
    address = ("127.0.0.1", server.tested.server.http_port)
    with socket.create_connection(address, timeout=60) as connection:
        try:
            connection.sendall(SOCKETS[name])
            server.assert_unharmed()
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
        except OSError:
            pass  # it was closed before
    assert server.client.get("/health").status_code == 200
    server.assert_unharmed()
