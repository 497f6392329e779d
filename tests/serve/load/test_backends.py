"""What a load says to servers, and reads of their answers."""

import json
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from jaxinfer.errors import InvalidParameter
from serve.client.errors import InvalidArgument
from serve.load.grpc_backend import GrpcBackend
from serve.load.openai_backend import CHAT, EventReader, OpenAIBackend, OpenAIError, has_token
from tests.engine.house import VOCAB
from tests.serve.house import CANARY, LONG, in_loop, served
from tests.serve.http.house import http_served

PROMPT = tuple(CANARY.token_ids.ids)


@in_loop
async def test_over_grpc_tokens_are_counted_and_told():
    async with served() as tested, GrpcBackend(f"127.0.0.1:{tested.server.grpc_port}") as backend:
        assert await backend.model() == ("tiny", VOCAB, LONG)
        assert await backend.count("dbe") == 3
        reply = await backend.send(PROMPT, 12)
        assert reply.token_ids == tuple(await tested.tokens())
        assert (reply.prompt_tokens, reply.output_tokens, reply.cached_tokens) == (5, 12, 0)
        assert 1 <= len(reply.arrivals) <= 12
        assert sorted(reply.arrivals) == list(reply.arrivals)
        assert (await backend.send(PROMPT, 12)).cached_tokens == 4
        with pytest.raises(InvalidArgument):
            await backend.send((VOCAB,), 1)


@in_loop
async def test_over_openai_our_own_server_tells_the_same():
    async with http_served() as tested:
        url = f"http://127.0.0.1:{tested.server.http_port}"
        async with OpenAIBackend(url) as backend, OpenAIBackend(url, endpoint=CHAT) as chat:
            assert (await backend.model())[0] == "tiny"
            assert await backend.count("dbe") == 3
            for reply in (await backend.send(PROMPT, 12), await chat.send("dbebf", 12)):
                assert (reply.prompt_tokens, reply.output_tokens) == (5, 12)
                assert 1 <= len(reply.arrivals) <= 12
            with pytest.raises(OpenAIError, match=r"HTTP 400.*4000"):
                await backend.send((1,) * LONG, 1)


def chunk(text="", finish_reason=None, **parts) -> dict:
    return {"choices": [{"text": text, "finish_reason": finish_reason}]} | parts


USAGE = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}}


@asynccontextmanager
async def speaking(*events, status=200, ends=True):
    """A server of the OpenAI API that says this, and what it was asked."""
    asked = []

    async def answer(request):
        asked.append((request.path, await request.json(), request.headers.get("Authorization")))
        if status != 200:
            return web.json_response({"error": {"message": "full"}}, status=status)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in events:
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        if ends:
            await response.write(b"data: [DONE]\n\n")
        return response

    async def models(request):
        return web.json_response({"data": [{"id": "theirs"}]})

    async def tokenize(request):
        return web.json_response({"tokens": [*(await request.json())["prompt"]]})

    application = web.Application()
    application.router.add_post("/v1/completions", answer)
    application.router.add_post("/v1/chat/completions", answer)
    application.router.add_get("/v1/models", models)
    application.router.add_post("/tokenize", tokenize)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}", asked
    finally:
        await runner.cleanup()


@in_loop
async def test_over_openai_usage_counts_tokens_and_chunks_only_time_them():
    events = [chunk("a"), chunk("bc"), chunk("", "length"), USAGE]
    async with speaking(*events) as (url, asked), OpenAIBackend(url, token="xyzzy") as backend:
        assert await backend.model() == ("theirs", None, None)
        assert await backend.count("abc") == 3
        reply = await backend.send(PROMPT, 3)
        assert (reply.prompt_tokens, reply.output_tokens, len(reply.arrivals)) == (5, 3, 2)
        assert reply.token_ids is None
        [(path, body, token)] = asked
        assert (path, token) == ("/v1/completions", "Bearer xyzzy")
        assert body["prompt"] == list(PROMPT)
        assert (body["model"], body["max_tokens"]) == ("theirs", 3)
        assert (body["stream"], body["ignore_eos"]) == (True, True)
        assert body["stream_options"] == {"include_usage": True}


@in_loop
async def test_over_openais_chat_a_text_is_a_message():
    def said(finish_reason=None, **delta):
        return {"choices": [{"delta": delta, "finish_reason": finish_reason}]}

    events = [said(role="assistant", content=""), said(content="a"), said("stop"), USAGE]
    async with (
        speaking(*events) as (url, asked),
        OpenAIBackend(url, endpoint=CHAT, model="ours") as backend,
    ):
        reply = await backend.send("hi", 3)
        assert len(reply.arrivals) == 1
        [(path, body, _)] = asked
        assert (path, body["model"]) == (CHAT, "ours")
        assert body["messages"] == [{"role": "user", "content": "hi"}]
        with pytest.raises(InvalidParameter, match="token ids"):
            await backend.send(PROMPT, 3)


@pytest.mark.parametrize(
    ("server", "words"),
    [
        ({"status": 429}, "HTTP 429.*full"),
        ({"events": [chunk("a"), {"error": {"message": "broken"}}]}, "broken"),
        ({"events": [chunk("a")]}, "without usage"),
        ({"events": [chunk("a"), USAGE], "ends": False}, r"without \[DONE\]"),
    ],
)
@in_loop
async def test_over_openai_what_is_no_whole_answer_has_failed(server, words):
    events = server.pop("events", [])
    async with speaking(*events, **server) as (url, _), OpenAIBackend(url, model="m") as backend:
        with pytest.raises(OpenAIError, match=words):
            await backend.send(PROMPT, 3)


def test_chunks_with_tokens_are_told_from_others():
    assert has_token(chunk("a"))
    assert has_token(chunk(""))  # part of a character
    assert has_token(chunk("a", "length"))
    assert not has_token(chunk("", "length"))
    assert not has_token(USAGE)
    assert not has_token({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
    assert has_token({"choices": [{"delta": {"role": "assistant", "content": "a"}}]})
    assert has_token({"choices": [{"delta": {"reasoning_content": "a"}}]})
    assert has_token({"choices": [{"delta": {"content": ""}}]})


@given(st.lists(st.integers(0, 200)), st.sampled_from([b"\n\n", b"\r\n\r\n"]))
def test_events_are_read_wherever_they_were_cut(cuts, end):
    whole = end.join(
        [b": hi", b'data: {"a": 1}', b'event: x\ndata:{"b": "\xc3\xa9"}', b"data: [DONE]", b""]
    )
    edges = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    reader = EventReader()
    pieces = [whole[a:b] for a, b in pairwise(edges)]
    found = [event for piece in pieces for event in reader.feed(piece)]
    assert found == [{"a": 1}, {"b": "é"}]
    assert reader.is_done


def test_another_endpoint_is_refused():
    with pytest.raises(InvalidParameter, match="/v2"):
        OpenAIBackend("http://localhost", endpoint="/v2")
