"""What clients of the OpenAI API get, and what they are told when they get nothing."""

import asyncio
import json
import socket

import grpc
import httpx
import pytest
from starlette.requests import Request

from jaxinfer.errors import CapacityError
from serve.http.bodies import MAX_NAMES, MAX_VALUES, BodyReader
from serve.settings import ServeSettings
from tests.engine.house import text_of
from tests.serve.house import in_loop, served
from tests.serve.http.house import (
    CANARY,
    CHAT,
    COMPLETIONS,
    ENDLESS,
    error_of,
    http_served,
)
from tests.serve.openai.test_answers import joined

HELLO = {"messages": [{"role": "user", "content": "dbebf"}]}


@in_loop
async def test_both_protocols_say_the_same():
    async with http_served() as tested:
        tokens = await tested.tokens()
        body = CANARY | {"return_token_ids": True}
        [choice] = (await tested.post(body)).json()["choices"]
        assert (choice["token_ids"], choice["text"]) == (tokens, text_of(tokens))
        assert joined(await tested.chunks(CANARY)) == text_of(tokens)
        chat = HELLO | {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
        whole = (await tested.post(chat, CHAT)).json()
        assert whole["choices"][0]["message"]["content"] == text_of(tokens)
        assert joined(await tested.chunks(chat, CHAT)) == text_of(tokens)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b"[]", 400, "a JSON object, not a list"),
        (b"\xff{}", 400, "not UTF-8"),
        (b'{"prompt": NaN}', 400, "NaN"),
        (b'{"prompt": "a", "temperature": Infinity}', 400, "Infinity"),
        (b'{"prompt": "a", "temperature": 1e999}', 400, "temperature = inf"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", 400, "not JSON"),
        (b'{"prompt": "a", "seed": ' + b"9" * 50 + b"}", 400, "seed"),
        (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, "nested"),
        (b'{"prompt": "a", "prompt": [1], "max_tokens": 1}', 200, ""),
        (b'{"prompt": [12]}', 400, "from 0 to 11"),
        (b'{"prompt": [1], "n": 0}', 400, "n = 0"),
        (b'{"prompt": [1], "model": "gpt-5"}', 404, "'tiny' is"),
        (b'{"prompt": [1], "top_p": 1.0000001}', 400, "top_p"),
        (b'{"prompt": [1], "max_tokens": 4294967296, "temperature": -0.0, "stop": "a"}', 200, ""),
    ],
)
@in_loop
async def test_hostile_bodies_are_told_so_and_harm_nobody(body, status, words):
    async with http_served() as tested:
        canary = await tested.text()
        response = await tested.client.post(COMPLETIONS, content=body)
        assert response.status_code == status, response.text
        if status != 200:
            assert words in error_of(response)["message"]
        assert await tested.text() == canary


@in_loop
async def test_half_a_surrogate_pair_is_no_text_and_no_harm():
    async with http_served() as tested:
        for name in ("model", "request_id", "user", "stop", "x\\ud800"):
            body = b'{"prompt": [1], "max_tokens": 1, "%s": "\\ud800"}' % name.encode()
            response = await tested.client.post(COMPLETIONS, content=body)
            assert response.status_code in (200, 400, 404), response.text


@in_loop
async def test_a_body_is_bounded_whatever_its_length_is_said_to_be():
    settings = ServeSettings(grpc_port=0, max_message_bytes=20_000)
    async with http_served(settings) as tested:
        text = "a" * 30_000
        response = await tested.post({"prompt": text})
        assert response.status_code == 413
        assert "20000 bytes" in error_of(response)["message"]

        async def drops():
            for _ in range(30):
                yield b"a" * 1000

        assert (await tested.client.post(COMPLETIONS, content=drops())).status_code == 413


@in_loop
async def test_large_bodies_that_are_on_their_way_at_once_are_bounded():
    def request(pieces: list[bytes]) -> Request:
        async def receive():
            await asyncio.sleep(0)
            body = pieces.pop(0)
            return {"type": "http.request", "body": body, "more_body": bool(pieces)}

        return Request({"type": "http", "headers": []}, receive)

    bodies = BodyReader(max_bytes=100)
    for _ in range(2):  # what was refused takes no room afterwards
        pieces = [[b"{", b" " * 98, b"}"] for _ in range(12)]
        read = [bodies.read_json(request(each)) for each in pieces]
        answers = await asyncio.gather(*read, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, CapacityError)]
        assert answers.count({}) == 8
        assert len(refused) == 4


@in_loop
async def test_paths_and_methods_that_are_not_there_are_told_so():
    async with http_served() as tested:
        assert error_of(await tested.client.get("/v1/embeddings"))["type"] == (
            "invalid_request_error"
        )
        assert (await tested.client.get("/v1/models/")).status_code == 404
        assert (await tested.client.get(COMPLETIONS)).status_code == 405


@in_loop
async def test_models_and_facts_are_told():
    async with http_served() as tested:
        [model] = (await tested.client.get("/v1/models")).json()["data"]
        assert (model["id"], model["max_model_len"]) == ("tiny", 4000)
        assert (await tested.client.get("/v1/models/tiny")).json() == model
        response = await tested.client.get("/v1/models/of/another")
        assert (response.status_code, error_of(response)["code"]) == (404, "model_not_found")
        assert (await tested.client.get("/version")).json()["version"]
        await tested.text()
        metrics = await tested.client.get("/metrics")
        assert 'jaxinfer:generation_tokens_total{model_name="tiny"} 12' in metrics.text


@in_loop
async def test_texts_become_tokens_and_tokens_texts():
    async with http_served() as tested:
        answer = (
            await tested.post({"prompt": "dbe", "return_token_strs": True}, "/tokenize")
        ).json()
        assert answer == {
            "count": 3,
            "max_model_len": 4000,
            "tokens": [3, 1, 4],
            "token_strs": ["d", "b", "e"],
        }
        answer = (await tested.post(HELLO, "/tokenize")).json()
        assert answer["tokens"] == CANARY["prompt"]
        assert (await tested.post({"tokens": [3, 1, 4]}, "/detokenize")).json() == {"prompt": "dbe"}
        assert (await tested.post({"tokens": []}, "/detokenize")).json() == {"prompt": ""}
        for url, body in (
            ("/tokenize", {}),
            ("/tokenize", {"prompt": "a"} | HELLO),
            ("/detokenize", {"tokens": [12]}),
            ("/detokenize", {"tokens": [True]}),
            (CHAT, {"messages": []}),
        ):
            assert (await tested.post(body, url)).status_code == 400


@in_loop
async def test_answers_are_called_as_their_requests_are():
    async with http_served() as tested:
        named = await tested.post(CANARY, **{"x-request-id": "mine-1"})
        assert named.headers["x-request-id"] == "mine-1"
        unnamed = [(await tested.post(CANARY)).headers["x-request-id"] for _ in range(2)]
        assert len(set(unnamed)) == 2
        odd = await tested.post(CANARY, **{"x-request-id": "a b"})
        assert odd.headers["x-request-id"] != "a b"


@in_loop
async def test_a_request_id_in_use_is_refused():
    async with http_served() as tested:
        body = ENDLESS | {"request_id": "r", "stream": True}
        async with tested.client.stream("POST", COMPLETIONS, json=body):
            response = await tested.post(body)
            assert (response.status_code, error_of(response)["type"]) == (409, "conflict_error")


@pytest.mark.parametrize("stream", [True, False])
@in_loop
async def test_a_client_that_leaves_takes_its_request_along(stream):
    async with http_served() as tested:
        for prompt in ([2, 7], [[2, 7], [1], [3]]):
            body = ENDLESS | {"prompt": prompt, "stream": stream}
            task = asyncio.ensure_future(tested.post(body))
            while not tested.engine.num_running:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await tested.idle()
        assert tested.house.stats.num_generated_tokens < 4 * 3900


@in_loop
async def test_a_full_queue_pushes_back_before_a_stream_begins():
    async with http_served(max_num_seqs=1, max_waiting_requests=1) as tested:
        body = ENDLESS | {"stream": True}
        async with tested.client.stream("POST", COMPLETIONS, json=body) as running:
            lines = running.aiter_lines()
            await anext(lines)
            async with tested.client.stream("POST", COMPLETIONS, json=body) as waiting:
                assert waiting.status_code == 200
                response = await tested.post(body)
                assert response.status_code == 429
                assert response.headers["retry-after"] == "1"
                assert error_of(response)["code"] == "rate_limit_exceeded"


@in_loop
async def test_draining_refuses_what_is_new_and_ends_what_runs():
    async with http_served() as tested:
        for ask in (tested.client.get, tested.client.head):
            assert (await ask("/health")).status_code == 200
        body = CANARY | {"stream": True, "max_tokens": 200}
        async with tested.client.stream("POST", COMPLETIONS, json=body) as running:
            lines = running.aiter_lines()
            await anext(lines)
            tested.server.frontend.is_draining = True
            response = await tested.post(CANARY)
            assert response.status_code == 503
            assert error_of(response)["type"] == "service_unavailable_error"
            for ask in (tested.client.get, tested.client.head):
                assert (await ask("/health")).status_code == 503
            last = [line async for line in lines if line][-1]
            assert last == "data: [DONE]"


@in_loop
async def test_a_deadline_is_an_error_and_at_the_end_of_a_stream_its_last_event():
    async with http_served() as tested:
        limit = {"x-request-timeout": "0.05"}
        response = await tested.post(ENDLESS, **limit)
        assert (response.status_code, error_of(response)["type"]) == (504, "timeout_error")
        body = ENDLESS | {"stream": True}
        async with tested.client.stream("POST", COMPLETIONS, json=body, headers=limit) as running:
            *_, last = [line async for line in running.aiter_lines() if line]
            assert json.loads(last.removeprefix("data: "))["error"]["type"] == "timeout_error"
        for given, status in (("nan", 400), ("soon", 400), ("-1", 504), ("1e400", 400)):
            response = await tested.post(CANARY, **{"x-request-timeout": given})
            assert response.status_code == status


@in_loop
async def test_fifty_streams_on_four_slots_all_end():
    async with http_served() as tested:
        alone = joined(await tested.chunks(CANARY))
        together = await asyncio.gather(*(tested.chunks(CANARY) for _ in range(50)))
        assert [joined(chunks) for chunks in together] == [alone] * 50


GUARDED = ServeSettings(grpc_port=0, tokens=("open sesame", "xyzzy"))


@in_loop
async def test_all_but_health_needs_a_token():
    async with http_served(GUARDED) as tested:
        assert (await tested.client.get("/health")).status_code == 200
        for given in (None, "Bearer nothing", "xyzzy", "Bearer \xe9"):
            headers = {} if given is None else {"authorization": given.encode("latin-1")}
            for path in ("/v1/models", "/openapi.json", "/metrics", "/no-such"):
                response = await tested.client.get(path, headers=headers)
                assert response.status_code == 401
                assert response.headers["www-authenticate"] == "Bearer"
                assert error_of(response)["type"] == "authentication_error"
            response = await tested.post(CANARY, **headers)
            assert response.status_code == 401
        for token in GUARDED.tokens:
            response = await tested.post(CANARY, authorization=f"Bearer {token}")
            assert response.status_code == 200


@pytest.mark.parametrize("value", [b"{}", b"[]", b"1", b'"":1'])
@in_loop
async def test_a_body_of_too_many_values_is_refused_before_they_are_made(value):
    head, tail = (b'{"metadata": {', b"}}") if b":" in value else (b'{"prompt": [', b"]}")
    content = head + b",".join([value] * (MAX_VALUES + 1)) + tail
    async with http_served() as tested:
        answer = await tested.client.post(COMPLETIONS, content=content)
        assert answer.status_code == 400
        assert f"more than {MAX_VALUES} commas" in error_of(answer)["message"]


@in_loop
async def test_a_body_of_too_many_fields_is_refused_before_they_are_made():
    content = b'{"metadata": {' + b",".join([b'"":1'] * (MAX_NAMES + 1)) + b"}}"
    async with http_served() as tested:
        answer = await tested.client.post(COMPLETIONS, content=content)
        assert answer.status_code == 400
        assert f"more than {MAX_NAMES} colons" in error_of(answer)["message"]


@in_loop
async def test_it_listens_on_addresses_of_both_kinds():
    for host, written in (("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")):
        if not can_listen_on(host):
            continue
        settings = ServeSettings(grpc_port=0, http_port=0, admin_port=0, host=host, admin_host=host)
        async with served(settings) as tested:
            for port in (tested.server.grpc_port, tested.server.admin_port):
                async with grpc.aio.insecure_channel(f"{written}:{port}") as channel:
                    async with asyncio.timeout(20):
                        await channel.channel_ready()
            async with httpx.AsyncClient() as client:
                answer = await client.get(f"http://{written}:{tested.server.http_port}/health")
                assert answer.status_code == 200


def can_listen_on(host: str) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, 0), family=family).close()
    except OSError:  # this machine has none of that kind
        return False
    return True
