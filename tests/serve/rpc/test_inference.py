"""What clients of ``jaxinfer.v1.Inference`` get, and what they are told when they get nothing."""

import asyncio

import grpc
import pytest

from serve.proto import inference_pb2 as pb
from serve.settings import ServeSettings
from tests.engine.house import VOCAB, text_of
from tests.engine.poison import poison
from tests.serve.house import CANARY, LONG, in_loop, served

ENDLESS = pb.GenerateRequest(
    request_id="endless",
    token_ids=pb.TokenIds(ids=[2, 7]),
    stopping=pb.Stopping(ignore_eos=True),
)


def changed(request: pb.GenerateRequest, **parts) -> pb.GenerateRequest:
    """A copy of the request with other parts."""
    copy = pb.GenerateRequest()
    copy.CopyFrom(request)
    copy.MergeFrom(pb.GenerateRequest(**parts))
    return copy


def kinds(events) -> list[str]:
    return [event.WhichOneof("event") for event in events]


async def rest(stream) -> list[pb.GenerateEvent]:
    """What a stream of which something was read still brings."""
    events = []
    while (event := await stream.read()) is not grpc.aio.EOF:
        events.append(event)
    return events


async def rest_and_error(stream) -> tuple[list[pb.GenerateEvent], grpc.aio.AioRpcError | None]:
    """What a stream still brings, and how it fails."""
    events = []
    try:
        while (event := await stream.read()) is not grpc.aio.EOF:
            events.append(event)
    except grpc.aio.AioRpcError as error:
        return events, error
    return events, None


async def refused(call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


@in_loop
async def test_a_stream_is_a_prompt_deltas_and_one_end():
    async with served() as tested:
        events = await tested.events(CANARY)
        assert set(kinds(events)[1:-1]) == {"delta"}
        assert (kinds(events)[0], kinds(events)[-1]) == ("prompt", "finished")
        tokens = [token for event in events for token in event.delta.token_ids]
        assert "".join(event.delta.text for event in events) == text_of(tokens)
        assert tokens == await tested.tokens()
        finished = events[-1].finished
        assert finished.reason == pb.LENGTH
        assert finished.usage == pb.Usage(prompt_tokens=5, completion_tokens=12)
        times = [getattr(finished.timing, f.name) for f in finished.timing.DESCRIPTOR.fields]
        assert times == sorted(times)
        assert times[0] > 0


@in_loop
async def test_texts_tokens_and_what_was_cached_are_told():
    async with served() as tested:
        text = pb.GenerateRequest(text="dbebf" * 3, stopping=CANARY.stopping)
        ids = pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=[3, 1, 4, 1, 5] * 3), stopping=CANARY.stopping
        )
        assert await tested.tokens(text) == await tested.tokens(ids)
        usage = (await tested.stub.Generate(ids)).outputs[0].finished.usage
        assert usage.cached_tokens == 12
        salted = changed(ids, cache=pb.Cache(salt="another"))
        assert (await tested.stub.Generate(salted)).outputs[0].finished.usage.cached_tokens == 0


@in_loop
async def test_each_of_n_outputs_ends_once_with_nothing_after_it():
    async with served() as tested:
        events = await tested.events(changed(CANARY, sampling=pb.Sampling(n=3)))
        for index in range(3):
            of_output = [
                kind
                for kind, event in zip(kinds(events), events, strict=True)
                if kind != "prompt" and getattr(event, kind).index == index
            ]
            assert of_output[-1] == "finished"
            assert of_output.count("finished") == 1


@in_loop
async def test_log_probabilities_come_with_their_tokens():
    async with served() as tested:
        asked = changed(CANARY, output=pb.Output(logprobs=2, prompt_logprobs=1))
        response = await tested.stub.Generate(asked)
        [output] = response.outputs
        assert [entry.entries[0].token_id for entry in output.logprobs] == list(output.token_ids)
        assert len(response.prompt.logprobs) == len(CANARY.token_ids.ids) - 1


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"token_ids": pb.TokenIds()}, "INVALID_ARGUMENT", "the prompt is empty"),
        ({"token_ids": pb.TokenIds(ids=[VOCAB])}, "INVALID_ARGUMENT", "from 0 to 11"),
        ({"token_ids": pb.TokenIds(ids=[2**32 - 1])}, "INVALID_ARGUMENT", "4294967295"),
        ({"token_ids": pb.TokenIds(ids=[1] * LONG)}, "INVALID_ARGUMENT", "at most 3999"),
        ({"token_ids": pb.TokenIds(ids=[1] * 10**6)}, "INVALID_ARGUMENT", "1000000 tokens"),
        ({"model": "x" * 10**6}, "NOT_FOUND", "model 'xxx"),
        ({"request_id": "x" * 10**6}, "INVALID_ARGUMENT", "1000000 characters"),
        ({"chat": pb.ChatMessages()}, "INVALID_ARGUMENT", "messages"),
        ({"model": "gpt-5"}, "NOT_FOUND", "'tiny' is"),
        ({"sampling": pb.Sampling(temperature=float("nan"))}, "INVALID_ARGUMENT", "temperature"),
        ({"sampling": pb.Sampling(top_p=0)}, "INVALID_ARGUMENT", "top_p = 0.0"),
        ({"sampling": pb.Sampling(n=0)}, "INVALID_ARGUMENT", "n = 0"),
        ({"sampling": pb.Sampling(n=10**9)}, "INVALID_ARGUMENT", "n = 1000000000"),
        ({"stopping": pb.Stopping(max_tokens=0)}, "INVALID_ARGUMENT", "max_tokens = 0"),
        ({"stopping": pb.Stopping(stop=["x"] * 10**5)}, "INVALID_ARGUMENT", "100000"),
        ({"stopping": pb.Stopping(stop=["x" * 10**6])}, "INVALID_ARGUMENT", "stop"),
    ],
)
@in_loop
async def test_what_cannot_be_served_is_refused_before_it_is_accepted(changes, code, words):
    async with served() as tested:
        canary = await tested.tokens()
        request = changed(CANARY, **changes)
        if "token_ids" in changes:
            request.token_ids.CopyFrom(changes["token_ids"])
        for call in (tested.events(request), tested.tokens(request)):
            error = await refused(call)
            assert error.code() is grpc.StatusCode[code]
            assert words in error.details()
        assert await tested.tokens() == canary


@in_loop
async def test_a_request_id_in_use_is_refused_and_free_again_afterwards():
    async with served() as tested:
        stream = tested.stub.GenerateStream(ENDLESS)
        await stream.read()
        error = await refused(tested.tokens(ENDLESS))
        assert error.code() is grpc.StatusCode.ALREADY_EXISTS
        await tested.stub.Abort(pb.AbortRequest(request_id="endless"))
        events = await rest(stream)
        assert events[-1].finished.reason == pb.ABORT
        assert len(await tested.tokens(changed(CANARY, request_id="endless"))) == 12
        await tested.stub.Abort(pb.AbortRequest(request_id="endless"))  # it has ended: success
        error = await refused(tested.stub.Abort(pb.AbortRequest(request_id="never")))
        assert error.code() is grpc.StatusCode.NOT_FOUND


@in_loop
async def test_a_client_that_leaves_takes_its_request_along():
    async with served() as tested:
        stream = tested.stub.GenerateStream(ENDLESS)
        await stream.read()
        stream.cancel()
        await tested.idle()
        call = tested.stub.Generate(ENDLESS)
        while not tested.engine.num_running:
            await asyncio.sleep(0.001)
        call.cancel()
        await tested.idle()
        assert tested.house.stats.num_generated_tokens < LONG


@in_loop
async def test_at_a_deadline_the_end_comes_before_the_status():
    async with served(ServeSettings(grpc_port=0, deadline_margin=60)) as tested:
        stream = tested.stub.GenerateStream(ENDLESS, timeout=3)
        events = [await stream.read()]
        while events[-1].WhichOneof("event") != "finished":
            events.append(await stream.read())
        assert events[-1].finished.reason == pb.DEADLINE
        error = await refused(stream.read())
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@in_loop
async def test_a_call_that_leaves_less_than_the_margin_has_half_of_its_time():
    async with served(ServeSettings(grpc_port=0, deadline_margin=60)) as tested:
        assert await tested.tokens(timeout=30) == await tested.tokens()


@in_loop
async def test_a_deadline_sooner_than_the_shortest_step_is_refused_before_any_event():
    async with served() as tested:
        canary = await tested.tokens()
        running = tested.stub.GenerateStream(ENDLESS)
        await running.read()
        tested.faults.hang()
        while not tested.faults.is_hanging:
            await asyncio.sleep(0.001)
        tested.engine._loop.step_clock.shortest_step = 5000.0  # as if no step had taken less
        late = changed(CANARY, request_id="late")
        guided = changed(late, guided=pb.Guided(regex="(a|b)+c"))
        for request in (late, guided):
            stream = tested.stub.GenerateStream(request, timeout=1000)
            error = await refused(stream.read())
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            assert "no step has yet taken less than 5000000.0 ms" in error.details()
        assert tested.server.frontend.num_unfinished == 1
        tested.faults.go_on()
        assert await tested.tokens(late) == canary  # its name is free
        running.cancel()


@in_loop
async def test_a_full_queue_pushes_back():
    async with served(max_num_seqs=1, max_waiting_requests=1) as tested:
        running = tested.stub.GenerateStream(ENDLESS)
        await running.read()
        await running.read()
        waiting = tested.stub.GenerateStream(changed(CANARY, request_id="waits"))
        await waiting.read()
        error = await refused(tested.tokens())
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "1000"
        running.cancel()
        assert (await rest(waiting))[-1].finished.reason == pb.LENGTH


@in_loop
async def test_draining_ends_what_runs_and_refuses_what_is_new():
    async with served(ServeSettings(grpc_port=0, drain_seconds=20)) as tested:
        asked = changed(CANARY, stopping=pb.Stopping(max_tokens=100))
        running = tested.stub.GenerateStream(asked)
        await running.read()
        tested.server.frontend.is_draining = True
        error = await refused(tested.tokens())
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        events = await rest(running)
        assert events[-1].finished.usage.completion_tokens == 100


@in_loop
async def test_a_failed_step_is_not_seen_but_for_those_that_fail_whenever_it_is_there():
    async with served() as tested:
        canary = await tested.tokens()
        stream = tested.stub.GenerateStream(changed(ENDLESS, request_id="bad"))
        await stream.read()
        tested.house.runner.fail_on = "read"
        assert await tested.tokens() == canary
        poison(tested.house, "launch")
        events, error = await rest_and_error(stream)
        assert kinds(events)[-2:] == ["error", "finished"]
        assert events[-1].finished.reason == pb.ERROR
        assert error.code() is grpc.StatusCode.INTERNAL
        assert await tested.tokens() == canary


@pytest.mark.parametrize("n", [1, 3])
@in_loop
async def test_a_whole_answer_that_fails_says_what_a_stream_would(n):
    async with served() as tested:
        poison(tested.house, "read")
        request = changed(ENDLESS, request_id="bad", sampling=pb.Sampling(n=n))
        events, of_stream = await rest_and_error(tested.stub.GenerateStream(request))
        messages = {event.error.message for event in events if event.WhichOneof("event") == "error"}
        of_whole = await refused(tested.tokens(request))
        why = "a step failed with FloatingPointError: cannot bear it"
        assert messages == {of_whole.details()} == {of_stream.details()} == {why}
        assert of_whole.code() is of_stream.code() is grpc.StatusCode.INTERNAL


@in_loop
async def test_two_hundred_streams_on_four_slots_all_end():
    async with served() as tested:
        alone = await tested.tokens()
        together = await asyncio.gather(*(tested.tokens() for _ in range(200)))
        assert together == [alone] * 200


@in_loop
async def test_a_score_is_that_of_the_prompts_log_probabilities():
    async with served() as tested:
        prompt = changed(CANARY, output=pb.Output(prompt_logprobs=0))
        positions = (await tested.stub.Generate(prompt)).prompt.logprobs
        ids = list(CANARY.token_ids.ids)
        whole = await tested.stub.Score(pb.ScoreRequest(token_ids=CANARY.token_ids))
        assert list(whole.token_ids) == ids[1:]
        assert list(whole.logprobs) == [position.entries[0].logprob for position in positions]
        assert whole.total_logprob == pytest.approx(sum(whole.logprobs))
        part = await tested.stub.Score(
            pb.ScoreRequest(
                token_ids=pb.TokenIds(ids=ids[:3]),
                continuation_token_ids=pb.TokenIds(ids=ids[3:]),
            )
        )
        assert list(part.logprobs) == list(whole.logprobs)[2:]
        error = await refused(tested.stub.Score(pb.ScoreRequest(text="a")))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "nothing to score" in error.details()


@in_loop
async def test_tokens_facts_and_load_are_told():
    async with served(max_waiting_requests=7) as tested:
        text = pb.TokenizeRequest(text="dbe")
        assert list((await tested.stub.Tokenize(text)).token_ids) == [3, 1, 4]
        chat = pb.ChatMessages(messages=[pb.ChatMessage(role="user", content="ab")])
        assert list((await tested.stub.Tokenize(pb.TokenizeRequest(chat=chat))).token_ids) == [0, 1]
        ids = pb.DetokenizeRequest(token_ids=[3, 1, 4])
        assert (await tested.stub.Detokenize(ids)).text == "dbe"
        assert (await tested.stub.Detokenize(pb.DetokenizeRequest())).text == ""
        error = await refused(tested.stub.Detokenize(pb.DetokenizeRequest(token_ids=[VOCAB])))
        assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
        model = await tested.stub.GetModelInfo(pb.GetModelInfoRequest())
        assert (model.model, model.vocab_size, model.max_model_len) == ("tiny", VOCAB, LONG)
        server = await tested.stub.GetServerInfo(pb.GetServerInfoRequest())
        assert (server.max_num_seqs, server.max_waiting_requests) == (4, 7)
        assert not server.HasField("max_waiting_tokens")
        stream = tested.stub.GenerateStream(ENDLESS)
        await stream.read()
        await stream.read()
        load = await tested.stub.GetLoad(pb.GetLoadRequest())
        assert (load.num_running, load.num_unfinished, load.num_slots) == (1, 1, 4)
        assert load.kv_cache_usage > 0
        stream.cancel()
