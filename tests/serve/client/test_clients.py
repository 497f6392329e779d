"""Both clients on a server whose model can be worked out by hand."""

import asyncio
import gc
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import grpc
import pytest
import trustme

from serve.client import AsyncClient, Client, RetryPolicy
from serve.client.errors import (
    AlreadyExists,
    Cancelled,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)
from serve.settings import ServeSettings
from tests.engine.house import VOCAB, text_of
from tests.serve.client.house import both_clients
from tests.serve.house import CANARY, LONG, in_loop, served
from tests.serve.test_auth import Authority

PROMPT = list(CANARY.token_ids.ids)
GREEDY = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
ENDLESS = {"max_tokens": None, "ignore_eos": True}


def address(tested) -> str:
    return f"127.0.0.1:{tested.server.grpc_port}"


@both_clients
@in_loop
async def test_texts_tokens_and_chats_are_answered_at_once_and_in_a_stream(face):
    async with served() as tested, face(address(tested)) as asking:
        tokens = tuple(await tested.tokens())
        talk = [{"role": "user", "content": text_of(PROMPT)}]
        for prompt in (PROMPT, text_of(PROMPT), talk):
            result = await asking.ask("generate", prompt, **GREEDY)
            events, stream = await asking.stream(prompt, **GREEDY)
            for found in (result, stream.result):
                assert found.outputs[0].token_ids == tokens
                assert found.text == text_of(tokens)
                assert found.outputs[0].finish_reason == "length"
                assert found.model == "tiny"
                usage = found.usage
                assert (usage.prompt_tokens, usage.completion_tokens) == (len(PROMPT), 12)
            assert [event.finish_reason for event in events if event.finish_reason] == ["length"]
            assert "".join(event.text for event in events) == text_of(tokens)
        assert (await asking.ask("chat", talk, **GREEDY)).text == text_of(tokens)


@both_clients
@in_loop
async def test_outputs_logprobs_usage_and_timing_are_told(face):
    async with served() as tested, face(address(tested)) as asking:
        options = GREEDY | {"n": 3, "logprobs": 2, "prompt_logprobs": 1, "stop": ["l"]}
        result = await asking.ask("generate", PROMPT, **options)
        _, stream = await asking.stream(PROMPT, **options)
        for found in (result, stream.result):
            assert found.prompt_token_ids == tuple(PROMPT)
            assert found.prompt_logprobs[0] is None
            assert len(found.prompt_logprobs) == len(PROMPT)
            assert [output.index for output in found.outputs] == [0, 1, 2]
            assert found.outputs[0].finish_reason == "stop"
            for output in found.outputs:
                assert output.text == result.outputs[output.index].text
                ends = {"stop": "l", "length": None}
                assert output.stop_reason == ends[output.finish_reason]
                chosen = [
                    entry[token].logprob
                    for token, entry in zip(output.token_ids, output.logprobs, strict=True)
                ]
                assert output.cumulative_logprob == sum(chosen)
                assert output.usage.completion_tokens == len(output.token_ids)
                times = vars(output.timing) | {"finished_time": float("inf")}
                assert list(times.values()) == sorted(times.values())
        assert found.usage.completion_tokens == sum(len(o.token_ids) for o in found.outputs)


@both_clients
@in_loop
async def test_refusals_have_their_class_and_the_servers_words(face):
    async with served() as tested, face(address(tested)) as asking:
        for error, words, options in (
            (InvalidArgument, "top_p = 0.0", {"top_p": 0.0}),
            (NotFound, "'tiny' is", {"model": "gpt-5"}),
            (InvalidArgument, "at most 3999", {"prompt": [1] * LONG}),
        ):
            options = {"prompt": PROMPT} | options
            with pytest.raises(error, match=words) as caught:
                await asking.ask("generate", **options)
            assert caught.value.code.name in caught.value.__cause__.code().name
            with pytest.raises(error, match=words):
                await asking.stream(**options)


@both_clients
@in_loop
async def test_tokens_scores_facts_and_health_are_told(face):
    async with served(max_waiting_requests=7) as tested, face(address(tested)) as asking:
        assert await asking.ask("tokenize", "dbe") == (3, 1, 4)
        assert await asking.ask("tokenize", [{"role": "user", "content": "ab"}]) == (0, 1)
        assert await asking.ask("detokenize", [3, 1, 4]) == "dbe"
        whole = await asking.ask("score", PROMPT)
        part = await asking.ask("score", PROMPT[:3], PROMPT[3:])
        assert whole.token_ids == tuple(PROMPT[1:])
        assert part.token_logprobs == whole.token_logprobs[2:]
        assert whole.logprob == pytest.approx(sum(whole.token_logprobs))
        model = await asking.ask("model_info")
        assert (model.model, model.vocab_size, model.max_model_len) == ("tiny", VOCAB, LONG)
        assert (model.eos_token_ids, model.has_tokenizer) == ((), True)
        server = await asking.ask("server_info")
        assert (server.max_num_seqs, server.max_waiting_requests) == (4, 7)
        assert server.max_waiting_tokens is None
        assert server.startup_seconds == {}
        load = await asking.ask("load")
        assert (load.num_running, load.num_slots, load.is_draining) == (0, 4, False)
        assert await asking.ask("health")
        assert await asking.ask("health", "")
        await asking.ask("wait_until_ready", 20)
        with pytest.raises(NotFound):
            await asking.ask("health", "nobody")


@both_clients
@in_loop
async def test_an_unknown_keyword_is_named(face):
    async with face("127.0.0.1:1") as asking:
        with pytest.raises(TypeError, match="temprature"):
            await asking.ask("generate", "a", temprature=0)
        with pytest.raises(TypeError, match="temprature"):
            await asking.stream("a", temprature=0)
        with pytest.raises(TypeError, match="tiemout"):
            await asking.ask("load", tiemout=3)


@both_clients
@in_loop
async def test_an_abort_ends_a_request_and_frees_its_id(face):
    async with served() as tested, face(address(tested)) as asking:
        stream = tested.stub.GenerateStream(endless_message())
        await stream.read()
        with pytest.raises(AlreadyExists):
            await asking.ask("generate", PROMPT, request_id="endless")
        await asking.ask("abort", "endless")
        while await stream.read() is not grpc.aio.EOF:
            pass
        assert (await asking.ask("generate", PROMPT, request_id="endless", **GREEDY)).text
        with pytest.raises(NotFound):
            await asking.ask("abort", "never")


def endless_message():
    from serve.client.messages import generate_request

    return generate_request(PROMPT, ENDLESS | {"request_id": "endless"})


@in_loop
async def test_a_stream_that_is_left_ends_on_the_server():
    """However it is left: the server is idle again."""
    async with served() as tested, AsyncClient(address(tested)) as client:

        async def leave_with():
            async with client.stream(PROMPT, **ENDLESS) as stream:
                await anext(stream)
            assert stream.result.outputs[0].finish_reason == "abort"
            assert [event async for event in stream] == []

        async def leave_by_break():
            async for _ in client.stream(PROMPT, **ENDLESS):
                break

        async def leave_unread():
            client.stream(PROMPT, **ENDLESS)

        async def leave_a_generator():
            async def texts():
                async for event in client.stream(PROMPT, **ENDLESS):
                    yield event.text

            async with aclosing(texts()) as generator:
                await anext(generator)

        async def leave_in_a_cycle():
            cycle = [client.stream(PROMPT, **ENDLESS)]
            cycle.append(cycle)
            await anext(cycle[0])
            del cycle
            gc.collect()

        async def leave_by_cancelling():
            async def read():
                async for _ in client.stream(PROMPT, **ENDLESS):
                    pass

            reading = asyncio.ensure_future(read())
            await begun(tested)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading

        async def leave_an_answer():
            asking = asyncio.ensure_future(client.generate(PROMPT, **ENDLESS))
            await begun(tested)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

        for leave in (
            leave_with,
            leave_by_break,
            leave_unread,
            leave_a_generator,
            leave_in_a_cycle,
            leave_by_cancelling,
            leave_an_answer,
        ):
            await leave()
            await tested.idle()
        assert tested.house.stats.num_generated_tokens < LONG


async def begun(tested) -> None:
    async with asyncio.timeout(20):
        while not tested.engine.num_running:
            await asyncio.sleep(0.001)


@in_loop
async def test_a_stream_that_a_thread_leaves_ends_on_the_server():
    async with served() as tested:
        with Client(address(tested)) as client:

            def leave_with():
                with client.stream(PROMPT, **ENDLESS) as stream:
                    next(stream)
                assert stream.result.outputs[0].finish_reason == "abort"
                assert list(stream) == []

            def leave_by_break():
                for _ in client.stream(PROMPT, **ENDLESS):
                    break

            def leave_a_generator():
                texts = (event.text for event in client.stream(PROMPT, **ENDLESS))
                next(texts)
                texts.close()

            def leave_in_a_cycle():
                cycle = [client.stream(PROMPT, **ENDLESS)]
                cycle.append(cycle)
                next(cycle[0])
                del cycle
                gc.collect()

            def leave_from_another_thread():
                stream = client.stream(PROMPT, **ENDLESS)
                next(stream)
                with ThreadPoolExecutor(1) as pool:
                    rest = pool.submit(list, stream)
                    stream.close()
                    assert len(rest.result()) < LONG

            for leave in (
                leave_with,
                leave_by_break,
                leave_a_generator,
                leave_in_a_cycle,
                leave_from_another_thread,
            ):
                await asyncio.to_thread(leave)
                await tested.idle()
        assert tested.house.stats.num_generated_tokens < LONG


@both_clients
@in_loop
async def test_a_client_that_is_closed_says_so_to_who_waits(face):
    async with served() as tested, face(address(tested)) as asking:
        waiting = [
            asyncio.ensure_future(asking.ask("generate", PROMPT, **ENDLESS)),
            asyncio.ensure_future(asking.stream(PROMPT, **ENDLESS)),
        ]
        async with asyncio.timeout(20):
            while tested.engine.num_running < 2:
                await asyncio.sleep(0.001)
        await face.__aexit__(asking)
        for call in waiting:
            with pytest.raises(Cancelled):
                await call


@in_loop
async def test_one_client_serves_many_threads():
    async with served() as tested:
        alone = tuple(await tested.tokens())
        with Client(address(tested)) as client, ThreadPoolExecutor(8) as pool:

            def tokens(number: int):
                if number % 2:
                    return client.generate(PROMPT, **GREEDY).outputs[0].token_ids
                stream = client.stream(PROMPT, **GREEDY)
                return tuple(token for event in stream for token in event.token_ids)

            together = await asyncio.to_thread(lambda: list(pool.map(tokens, range(40))))
        assert together == [alone] * 40


@both_clients
@in_loop
async def test_a_deadline_ends_a_request_with_what_it_had(face):
    settings = ServeSettings(grpc_port=0, deadline_margin=60)
    async with served(settings) as tested, face(address(tested), timeout=3) as asking:
        with pytest.raises(DeadlineExceeded):
            await asking.ask("generate", PROMPT, **ENDLESS)
    async with served(settings) as tested, AsyncClient(address(tested)) as client:
        stream = client.stream(PROMPT, timeout=3, **ENDLESS)
        with pytest.raises(DeadlineExceeded):
            [event async for event in stream]
        assert stream.result.outputs[0].finish_reason == "deadline"
        assert [event async for event in stream] == []


@both_clients
@in_loop
async def test_a_full_server_is_asked_again_when_it_said(face):
    async with served(max_num_seqs=1, max_waiting_requests=1) as tested:
        running = tested.stub.GenerateStream(endless_message())
        await running.read()
        await running.read()
        waiting = tested.stub.GenerateStream(CANARY)
        await waiting.read()
        once = RetryPolicy(max_attempts=1)
        async with face(address(tested), retry=once) as asking:
            with pytest.raises(ResourceExhausted) as caught:
                await asking.ask("generate", PROMPT, **GREEDY)
        assert caught.value.retry_after == 1.0
        async with face(address(tested)) as asking:
            patient = asyncio.ensure_future(asking.ask("generate", PROMPT, **GREEDY))
            running.cancel()
            assert len((await patient).outputs[0].token_ids) == 12


@both_clients
@in_loop
async def test_a_server_that_is_about_to_start_is_waited_for(face):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with face(f"127.0.0.1:{port}", retry=RetryPolicy(max_attempts=1)) as asking:
        with pytest.raises(Unavailable):
            await asking.ask("load")
        with pytest.raises(Unavailable):
            await asking.ask("health")
        with pytest.raises(DeadlineExceeded):
            await asking.ask("wait_until_ready", 0.05)
        ready = asyncio.ensure_future(asking.ask("wait_until_ready", 20))
        async with served(ServeSettings(grpc_port=port)):
            await ready
            assert await asking.ask("health")


@both_clients
@in_loop
async def test_tokens_open_over_plain_text_and_over_tls(face, tmp_path):
    guarded = {"grpc_port": 0, "tokens": ("xyzzy",)}
    async with served(ServeSettings(**guarded)) as tested:
        for token, opens in (("xyzzy", True), ("wrong", False), (None, False)):
            async with face(address(tested), token=token) as asking:
                await opened(asking, opens)
    authority = Authority(tmp_path)
    settings = ServeSettings(**guarded, tls=authority.files)
    async with served(settings, authority.credentials()) as tested:
        for token, opens in (("xyzzy", True), ("wrong", False), (None, False)):
            target = f"localhost:{tested.server.grpc_port}"
            async with face(target, token=token, tls_ca=tmp_path / "ca.pem") as asking:
                await opened(asking, opens)
                assert await asking.ask("health")


async def opened(asking, opens: bool) -> None:
    if opens:
        assert (await asking.ask("generate", PROMPT, **GREEDY)).text
        assert (await asking.stream(PROMPT, **GREEDY))[1].result.text
    else:
        with pytest.raises(Unauthenticated):
            await asking.ask("load")
        with pytest.raises(Unauthenticated):
            await asking.stream(PROMPT)


@both_clients
@in_loop
async def test_a_client_shows_its_certificate(face, tmp_path):
    authority = Authority(tmp_path, mutual=True)
    issued = authority.ca.issue_cert("client")
    (tmp_path / "client.pem").write_bytes(issued.cert_chain_pems[0].bytes())
    (tmp_path / "client.key").write_bytes(issued.private_key_pem.bytes())
    (tmp_path / "another.pem").write_bytes(trustme.CA().cert_pem.bytes())
    shown = {"tls_certificate": tmp_path / "client.pem", "tls_key": tmp_path / "client.key"}
    ours = {"tls_ca": tmp_path / "ca.pem"}
    async with served(authority.settings, authority.credentials(authority.ca)) as tested:
        target = f"127.0.0.1:{tested.server.grpc_port}"
        once = {"retry": RetryPolicy(max_attempts=1), "tls_server_name": "localhost"}
        async with face(target, **ours, **shown, **once) as asking:
            assert (await asking.ask("load")).num_slots == 4
        for files in (ours, {"tls_ca": tmp_path / "another.pem"} | shown):
            async with face(target, **files, **once) as asking:
                with pytest.raises(Unavailable):
                    await asking.ask("load")


@pytest.mark.parametrize(
    "options",
    [{"tls_ca": "absent.pem"}, {"tls_certificate": "a.pem"}, {"token": "two\nlines"}],
)
def test_what_no_connection_can_be_made_of_is_refused_at_once(options):
    with pytest.raises(ValueError, match=r"absent\.pem|both|header"):
        Client("localhost:1", **options)


def test_importing_a_client_loads_no_model_library():
    code = (
        "import sys, serve.client;"
        "print(sorted({'jax', 'flax', 'numpy', 'tokenizers', 'fastapi'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"
