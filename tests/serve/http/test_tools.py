"""Programs that measure models and servers: their bodies, to the letter, and what they read.

Bodies are those of lm-evaluation-harness 0.4.13 and guidellm 0.8.1.
"""

import json
from dataclasses import replace

import pytest

from tests.engine.fake_runner import FakeModel, logprob_of
from tests.engine.house import VOCAB, full_group, text_of
from tests.serve.house import ChattyTokenizer, in_loop
from tests.serve.http.house import CHAT, COMPLETIONS, SETTINGS, http_served

#: Contexts and their continuations.
PAIRS = [([3, 1, 4], [1, 5]), ([2], [7, 1, 8, 2]), ([9, 9, 9, 9], [1]), ([6, 2], [8])]


def likelihood(context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Of a continuation, by hand; and whether no other one is likelier, token by token."""
    model = FakeModel((full_group(),))
    states = [model.feed(token) for token in context + continuation]
    pairs = list(zip(states[len(context) - 1 :], continuation, strict=False))
    own = [logprob_of(state, token) for state, token in pairs]
    best = [max(logprob_of(state, token) for token in range(VOCAB)) for state, _ in pairs]
    return sum(own), own == best


def greediest(context: list[int], length: int) -> list[int]:
    """The continuation with the likeliest tokens."""
    model, continuation = FakeModel((full_group(),)), []
    states = [model.feed(token) for token in context]
    for _ in range(length):
        best = max(range(VOCAB), key=lambda token: logprob_of(states[-1], token))
        continuation.append(best)
        states.append(model.feed(best))
    return continuation


def read_likelihoods(answer: dict, lengths: list[int]) -> list[tuple[float, bool]]:
    """As the harness does, which knows how long contexts are, and takes the last token away."""
    read = []
    for choice, length in zip(
        sorted(answer["choices"], key=lambda choice: choice["index"]), lengths, strict=True
    ):
        values = choice["logprobs"]["token_logprobs"][length:-1]
        tops = choice["logprobs"]["top_logprobs"][length:-1]
        is_greedy = all(value == max(top.values()) for value, top in zip(values, tops, strict=True))
        read.append((sum(values), is_greedy))
    return read


@pytest.mark.parametrize("as_text", [False, True], ids=["ids", "texts"])
@pytest.mark.parametrize("batch_size", [1, 3])
@in_loop
async def test_a_harness_reads_how_likely_continuations_are(as_text, batch_size):
    pairs = [*PAIRS, *((context, greediest(context, 3)) for context, _ in PAIRS)]
    expected = [likelihood(*pair) for pair in pairs]
    assert {is_greedy for _, is_greedy in expected} == {False, True}
    async with http_served() as tested:
        for first in range(0, len(pairs), batch_size):
            batch = slice(first, first + batch_size)
            prompts = [context + continuation for context, continuation in pairs[batch]]
            if as_text:
                prompts = [text_of(prompt) for prompt in prompts]
            body = {
                "model": "tiny",
                "prompt": prompts[0] if as_text and batch_size == 1 else prompts,
                "temperature": 0,
                "max_tokens": 1,
                "logprobs": 1,
                "seed": 1234,
                "echo": True,
            }
            response = await tested.post(body)
            assert response.status_code == 200, response.text
            read = read_likelihoods(response.json(), [len(context) for context, _ in pairs[batch]])
            for (value, is_greedy), (own, is_best) in zip(read, expected[batch], strict=True):
                assert value == pytest.approx(own)
                assert is_greedy == is_best


@in_loop
async def test_a_harness_generates_until_a_text_comes():
    async with http_served() as tested:
        settings = {"max_tokens": 12, "temperature": 0.0, "stop": [], "seed": 1234}
        ids = {"model": "tiny", "prompt": [[3, 1], [8, 1]]} | settings
        whole = [choice["text"] for choice in (await tested.post(ids)).json()["choices"]]
        until = ["\n\n", whole[0][3:5], "Question:", "<|im_end|>"]
        for prompt in (ids["prompt"], [text_of(each) for each in ids["prompt"]]):
            body = ids | {"prompt": prompt, "stop": until}
            choices = (await tested.post(body)).json()["choices"]
            assert [choice["index"] for choice in choices] == [0, 1]
            assert choices[0]["text"] == whole[0][: whole[0].index(until[1])]
            assert choices[0]["finish_reason"] == "stop"
        messages = [{"role": "user", "content": text_of([3, 1])}]
        body = {"messages": messages, "model": "tiny"} | settings | {"stop": until}
        [choice] = (await tested.post(body, CHAT)).json()["choices"]
        assert choice["message"]["content"] == choices[0]["text"]


@in_loop
async def test_settings_of_a_harness_for_transformers_are_understood():
    async with http_served() as tested:
        body = {
            "prompt": [[2, 7]],
            "model": "tiny",
            "max_tokens": 256,
            "temperature": 0.0,
            "stop": ["\n", "<|im_end|>"],
            "seed": 1234,
            "num_beams": 1,
            "max_new_tokens": 3,
            "ignore_eos": True,  # which it does not send
        }
        answer = (await tested.post(body)).json()
        assert answer["usage"]["completion_tokens"] == 3
        refused = await tested.post(body | {"num_beams": 10})
        assert refused.status_code == 400
        assert "num_beams" in refused.json()["error"]["message"]


@pytest.mark.parametrize("begin", [None, 1])
@in_loop
async def test_a_client_needs_no_tokenizer_of_its_own_where_the_server_tells(begin):
    class Beginning(ChattyTokenizer):
        bos_token_id = begin

    async with http_served() as tested:  # those who look for it have a way without it
        assert (await tested.client.get("/tokenizer_info")).status_code == 404
    settings = replace(SETTINGS, tokenizer_info=True)
    async with http_served(settings, tokenizer=Beginning()) as tested:
        info = (await tested.client.get("/tokenizer_info")).json()
        assert info == {
            "tokenizer_class": "Beginning",
            "bos_token": begin and "b",
            "eos_token": "a",
            "chat_template": Beginning.chat_template,
        }
        body = {"prompt": info["eos_token"], "add_special_tokens": False}
        assert (await tested.post(body, "/tokenize")).json()["tokens"] == [0]


@in_loop
async def test_a_load_generator_counts_the_tokens_that_were_made():
    stream = {
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    parts = [{"role": "user", "content": [{"type": "text", "text": "dbebf"}]}]
    bodies = {
        COMPLETIONS: {"max_tokens": 32, "ignore_eos": True, "prompt": "dbebf"},
        CHAT: {"max_completion_tokens": 32, "ignore_eos": True, "messages": parts},
    }
    async with http_served() as tested:
        assert (await tested.client.get("/health")).status_code == 200
        for url, body in bodies.items():
            whole = await tested.post({"model": "tiny"} | body, url)
            events = await tested.events({"model": "tiny"} | stream | body, url)
            assert events.pop() == "[DONE]"
            usages = [json.loads(event)["usage"] for event in events]
            counts = [usage["completion_tokens"] for usage in usages]
            assert counts == sorted(counts)
            for usage in (whole.json()["usage"], usages[-1]):
                assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, 32)
