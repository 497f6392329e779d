"""What answers say, beside what the same request is answered over gRPC."""

import asyncio
import itertools
from contextlib import aclosing

import pytest

from jaxinfer.errors import (
    CapacityError,
    DeadlinePassed,
    InvalidParameter,
    InvalidPrompt,
    StepFailed,
)
from serve.errors import Aborted, Draining
from serve.openai import answer, read_body, stream, stream_batches
from serve.proto import inference_pb2 as pb
from tests.engine.house import text_of
from tests.serve.house import CANARY, in_loop, served

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
IDS = [3, 1, 4, 1, 5]
BODY = {"prompt": IDS, "temperature": 0, "max_tokens": 12, "ignore_eos": True}
ENDLESS = {"prompt": [2, 7], "max_tokens": 3900, "ignore_eos": True}


async def answered(tested, body, url=COMPLETIONS, **call):
    return await answer(tested.server.frontend, read_body(url, body, **call))


async def chunks_of(tested, body, url=COMPLETIONS):
    asked = read_body(url, {**body, "stream": True})
    return [chunk async for chunk in stream(tested.server.frontend, asked)]


def joined(chunks, index=0) -> str:
    parts = [each for chunk in chunks for each in chunk["choices"] if each["index"] == index]
    return "".join(part.get("text") or part.get("delta", {}).get("content", "") for part in parts)


@in_loop
async def test_a_completion_says_what_grpc_says():
    async with served() as tested:
        request = pb.GenerateRequest()
        request.CopyFrom(CANARY)
        request.output.CopyFrom(pb.Output(logprobs=2, prompt_logprobs=2))
        theirs = await tested.stub.Generate(request)
        [output] = theirs.outputs
        ours = await answered(
            tested, BODY | {"logprobs": 2, "prompt_logprobs": 2, "return_token_ids": True}
        )
        [choice] = ours["choices"]
        assert choice["text"] == output.text
        assert choice["token_ids"] == list(output.token_ids)
        assert choice["prompt_token_ids"] == IDS
        assert choice["finish_reason"] == "length"
        chosen = [position.entries[0] for position in output.logprobs]
        assert choice["logprobs"]["tokens"] == [entry.text for entry in chosen]
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(
            [entry.logprob for entry in chosen]
        )
        assert choice["logprobs"]["top_logprobs"] == [
            pytest.approx({entry.text: entry.logprob for entry in position.entries})
            for position in output.logprobs
        ]
        assert choice["logprobs"]["text_offset"] == list(range(12))
        assert choice["prompt_logprobs"][0] is None
        assert [
            {int(token): entry["rank"] for token, entry in position.items()}
            for position in choice["prompt_logprobs"][1:]
        ] == [
            {entry.token_id: entry.rank for entry in position.entries}
            for position in theirs.prompt.logprobs
        ]
        usage = output.finished.usage
        cached = ours["usage"].pop("prompt_tokens_details")["cached_tokens"]
        assert cached == usage.cached_tokens == 0  # a prompt whose log-probabilities are asked for
        assert ours["usage"] == {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
        assert (ours["object"], ours["model"]) == ("text_completion", "tiny")
        assert ours["id"].startswith("cmpl-")


@in_loop
async def test_tokens_that_were_cached_are_counted():
    async with served() as tested:
        usages = [(await answered(tested, BODY))["usage"] for _ in range(2)]
        cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]
        assert cached == [0, tested.house.limits.page_size]


@in_loop
async def test_a_stream_says_what_the_whole_answer_says():
    async with served() as tested:
        body = BODY | {"logprobs": 1, "n": 3, "temperature": 0.5, "seed": 7}
        whole = await answered(tested, body)
        chunks = await chunks_of(tested, body | {"stream_options": {"include_usage": True}})
        last = chunks.pop()
        assert (last["choices"], last["usage"]["total_tokens"]) == ([], 5 + 3 * 12)
        assert all(chunk["usage"] is None for chunk in chunks)
        assert {chunk["id"] for chunk in chunks} == {last["id"]}
        for choice in whole["choices"]:
            parts = [
                part
                for chunk in chunks
                for part in chunk["choices"]
                if part["index"] == choice["index"]
            ]
            assert "".join(part["text"] for part in parts) == choice["text"]
            for name, values in choice["logprobs"].items():
                assert [value for part in parts for value in part["logprobs"][name]] == values
            reasons = [part["finish_reason"] for part in parts]
            assert reasons == [None] * (len(parts) - 1) + ["length"]


@in_loop
async def test_a_chat_is_a_completion_of_its_template():
    async with served() as tested:
        chat = {"messages": [{"role": "user", "content": text_of(IDS)}]}
        settings = {"temperature": 0, "max_completion_tokens": 12, "ignore_eos": True}
        body = chat | settings | {"logprobs": True, "top_logprobs": 2}
        ours = await answered(tested, body, CHAT)
        theirs = await answered(tested, BODY | {"logprobs": 2})
        [choice], [plain] = ours["choices"], theirs["choices"]
        assert choice["message"] == {
            "role": "assistant",
            "content": plain["text"],
            "refusal": None,
        }
        content = choice["logprobs"]["content"]
        assert [each["token"] for each in content] == plain["logprobs"]["tokens"]
        assert [each["logprob"] for each in content] == plain["logprobs"]["token_logprobs"]
        for each in content:
            assert bytes(each["bytes"]).decode() == each["token"]
            assert len(each["top_logprobs"]) == 2
            values = [top["logprob"] for top in each["top_logprobs"]]
            assert values == sorted(values, reverse=True)
        chunks = await chunks_of(tested, body, CHAT)
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        roles = [delta.get("role") for delta in deltas]
        assert roles == ["assistant"] + [None] * (len(deltas) - 1)
        assert joined(chunks) == plain["text"]
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        parts = {"messages": [{"role": "user", "content": [{"type": "text", "text": "dbebf"}]}]}
        assert (await answered(tested, parts | settings, CHAT))["choices"][0]["message"] == (
            choice["message"]
        )


@in_loop
async def test_several_prompts_are_answered_in_their_order():
    async with served() as tested:
        prompts = [IDS, "dbebf", [2, 7], "ca"]
        body = BODY | {"n": 2, "seed": 5}
        expected = [
            choice["text"]
            for prompt in prompts
            for choice in (await answered(tested, body | {"prompt": prompt}))["choices"]
        ]
        body["prompt"] = prompts
        ours = await answered(tested, body)
        assert [choice["index"] for choice in ours["choices"]] == list(range(8))
        assert [choice["text"] for choice in ours["choices"]] == expected
        assert ours["usage"]["prompt_tokens"] == 5 + 5 + 2 + 2
        chunks = await chunks_of(tested, body)
        assert [joined(chunks, index) for index in range(8)] == expected


@in_loop
async def test_echo_with_no_tokens_scores_a_prompt():
    async with served() as tested:
        request = pb.GenerateRequest()
        request.CopyFrom(CANARY)
        request.output.CopyFrom(pb.Output(prompt_logprobs=0))
        scored = (await tested.stub.Generate(request)).prompt.logprobs
        body = {"prompt": IDS, "temperature": 0, "logprobs": 1, "echo": True}
        for max_tokens in (0, 1):
            whole = await answered(tested, body | {"max_tokens": max_tokens})
            [choice] = whole["choices"]
            values = choice["logprobs"]["token_logprobs"]
            assert values[0] is None
            assert choice["logprobs"]["top_logprobs"][0] is None
            assert values[1:5] == pytest.approx(
                [position.entries[0].logprob for position in scored]
            )
            assert len(values) == 5 + max_tokens
            assert choice["text"][:5] == text_of(IDS)
            assert len(choice["text"]) == 5 + max_tokens
            assert choice["logprobs"]["text_offset"] == list(range(5 + max_tokens))
            assert choice["finish_reason"] == "length"
            assert whole["usage"]["completion_tokens"] == max_tokens
            chunks = await chunks_of(tested, body | {"max_tokens": max_tokens})
            assert joined(chunks) == choice["text"]
            streamed = [
                value
                for chunk in chunks
                for value in chunk["choices"][0]["logprobs"]["token_logprobs"]
            ]
            assert streamed == values


@in_loop
async def test_a_stop_string_ends_an_output_and_is_named():
    async with served() as tested:
        text = (await answered(tested, BODY))["choices"][0]["text"]
        stop = text[4:6]
        whole = await answered(tested, BODY | {"stop": stop})
        [choice] = whole["choices"]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
        assert choice["text"] == text[: text.index(stop)]
        chunks = await chunks_of(tested, BODY | {"stop": [stop]})
        assert joined(chunks) == choice["text"]
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@in_loop
async def test_each_chunk_can_say_how_many_tokens_there_were():
    async with served() as tested:
        options = {"stream_options": {"continuous_usage_stats": True, "include_usage": True}}
        chunks = await chunks_of(tested, BODY | options)
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        texts = [choice["text"] for chunk in chunks for choice in chunk["choices"]]
        assert counts == [*itertools.accumulate(map(len, texts)), 12]


@in_loop
async def test_tokens_can_be_named_by_their_ids():
    async with served() as tested:
        body = BODY | {"logprobs": 0, "return_tokens_as_token_ids": True, "return_token_ids": True}
        [choice] = (await answered(tested, body))["choices"]
        names = [f"token_id:{token}" for token in choice["token_ids"]]
        assert choice["logprobs"]["tokens"] == names
        chunks = await chunks_of(tested, body)
        assert [token for chunk in chunks for token in chunk["choices"][0]["token_ids"]] == choice[
            "token_ids"
        ]


@in_loop
async def test_a_reader_that_leaves_takes_all_prompts_along():
    async with served() as tested:
        for prompts in ([2, 7], [[2, 7], [7, 2], [1]]):
            body = ENDLESS | {"prompt": prompts, "stream": True}
            ask = read_body(COMPLETIONS, body)
            async with aclosing(stream(tested.server.frontend, ask)) as chunks:
                await anext(chunks)
            await tested.idle()
            task = asyncio.ensure_future(answered(tested, ENDLESS | {"prompt": prompts}))
            while not tested.engine.num_running:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await tested.idle()
        assert tested.house.stats.num_generated_tokens < 4 * 3900


@in_loop
async def test_one_bad_prompt_takes_the_others_back():
    async with served() as tested:
        with pytest.raises(InvalidPrompt, match="from 0 to 11"):
            await answered(tested, ENDLESS | {"prompt": [[2, 7], [12]]})
        await tested.idle()


@in_loop
async def test_an_output_that_ends_before_its_time_is_an_error():
    async with served() as tested:
        with pytest.raises(DeadlinePassed):
            await answered(tested, ENDLESS, timeout=0.05)
        frontend = tested.server.frontend
        for ended, kind in (("abort", Aborted), ("drain", Draining)):
            ask = read_body(COMPLETIONS, ENDLESS | {"stream": True, "request_id": ended})
            async with aclosing(stream_batches(frontend, ask)) as batches:
                assert await anext(batches) == []  # it was accepted
                if ended == "drain":
                    frontend.is_draining = True
                frontend.abort(f"cmpl-{ended}")
                with pytest.raises(kind):
                    async for _ in batches:
                        pass
            frontend.is_draining = False


@in_loop
async def test_a_step_that_fails_again_and_again_is_an_error():
    async with served() as tested:
        ask = read_body(COMPLETIONS, ENDLESS | {"stream": True})

        async def read() -> None:
            async for _ in stream(tested.server.frontend, ask):
                tested.house.runner.fail_on = "read"

        with pytest.raises(StepFailed):
            await read()
        tested.house.runner.fail_on = None


@in_loop
async def test_a_full_queue_is_said_before_the_first_chunk():
    async with served(max_num_seqs=1, max_waiting_requests=2) as tested:
        ask = read_body(COMPLETIONS, ENDLESS | {"prompt": [[1], [2]], "stream": True})
        async with aclosing(stream_batches(tested.server.frontend, ask)) as batches:
            assert await anext(batches) == []  # both are in, of which one waits at least
            with pytest.raises(CapacityError):
                await answered(tested, ENDLESS | {"prompt": [[3], [4]]})


@in_loop
async def test_what_the_engine_refuses_is_refused():
    async with served() as tested:
        with pytest.raises(InvalidParameter, match="top_p = 0"):
            await answered(tested, BODY | {"top_p": 0})
