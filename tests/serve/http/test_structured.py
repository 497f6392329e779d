"""Outputs that must match something, asked for over HTTP, beside the same over gRPC."""

import asyncio
import json

import httpx
import pytest

from serve.proto import inference_pb2 as pb
from serve.settings import ServeSettings
from tests.serve.background import background
from tests.serve.house import JsonTokenizer, in_loop
from tests.serve.http.house import CHAT, COMPLETIONS, error_of, http_served
from tests.serve.openai.test_answers import joined

BODY = {"temperature": 0, "max_tokens": 40, "return_token_ids": True}
#: The same prompt, by either endpoint.
PROMPTS = {
    COMPLETIONS: {"prompt": [3, 1, 4, 1, 5]},
    CHAT: {"messages": [{"role": "user", "content": "dbebf"}]},
}
SCHEMA = {
    "type": "object",
    "properties": {"b": {"enum": ["c", "bc", 1, 22]}, "c": {"enum": [[], [1, 2]]}},
    "required": ["b", "c"],
    "additionalProperties": False,
}
#: Longest first, for it ends only where nothing more can come.
CHOICES = ["bcb2", "1bc", "[]"]
RULES = 'start: "b" start "c" | "12"'
FORMAT = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}


@pytest.fixture(scope="module")
def server():
    both = ServeSettings(grpc_port=0, http_port=0)
    with background(both, tokenizer=JsonTokenizer()) as server:
        address = f"http://127.0.0.1:{server.tested.server.http_port}"
        with httpx.Client(base_url=address, timeout=60) as server.client:
            yield server


def content(response) -> str:
    [choice] = response.json()["choices"]
    return choice["message"]["content"] if "message" in choice else choice["text"]


@pytest.mark.parametrize("url", PROMPTS)
@pytest.mark.parametrize(
    ("guide", "ways"),
    [
        (
            {"json_schema": json.dumps(SCHEMA)},
            [
                {"response_format": FORMAT},
                {"structured_outputs": {"json": SCHEMA}},
                {"structured_outputs": {"json": json.dumps(SCHEMA)}},
                {"guided_json": SCHEMA},
            ],
        ),
        (
            {"json_schema": '{"type": "object"}'},
            [
                {"response_format": {"type": "json_object"}},
                {"structured_outputs": {"json_object": True}},
            ],
        ),
        (
            {"regex": "(bc|1)[2:]{5}"},
            [{"structured_outputs": {"regex": "(bc|1)[2:]{5}"}}, {"guided_regex": "(bc|1)[2:]{5}"}],
        ),
        (
            {"choice": pb.Choice(choices=CHOICES)},
            [{"structured_outputs": {"choice": CHOICES}}, {"guided_choice": CHOICES}],
        ),
        (
            {"grammar": RULES},
            [{"structured_outputs": {"grammar": RULES}}, {"guided_grammar": RULES}],
        ),
    ],
    ids=["json", "object", "regex", "choice", "grammar"],
)
@in_loop
async def test_both_protocols_hold_outputs_to_the_same(url, guide, ways):
    async with http_served(tokenizer=JsonTokenizer()) as tested:
        request = pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=[3, 1, 4, 1, 5]),
            sampling=pb.Sampling(temperature=0),
            stopping=pb.Stopping(max_tokens=40),
            guided=pb.Guided(**guide),
        )
        [output] = (await tested.stub.Generate(request)).outputs
        neighbour = asyncio.create_task(tested.text())
        for way in ways:
            response = await tested.post(BODY | PROMPTS[url] | way, url)
            assert response.status_code == 200, response.text
            [choice] = response.json()["choices"]
            assert choice["token_ids"] == list(output.token_ids)
            assert content(response) == output.text
            assert joined(await tested.chunks(BODY | PROMPTS[url] | way, url)) == output.text
        assert await neighbour == await tested.text()


@pytest.mark.parametrize("url", PROMPTS)
@in_loop
async def test_each_of_n_outputs_is_json_of_its_schema(url):
    async with http_served(tokenizer=JsonTokenizer()) as tested:
        body = PROMPTS[url] | {"n": 4, "seed": 3, "max_tokens": 40, "response_format": FORMAT}
        choices = (await tested.post(body, url)).json()["choices"]
        assert [choice["finish_reason"] for choice in choices] == ["stop"] * 4
        for choice in choices:
            thing = json.loads(choice["message"]["content"] if url == CHAT else choice["text"])
            assert list(thing) == ["b", "c"]
            assert thing["b"] in ["c", "bc", 1, 22]
            assert thing["c"] in [[], [1, 2]]


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"structured_outputs": {}}, "structured_outputs", "set exactly one"),
        ({"structured_outputs": {"json": "{}", "regex": "b"}}, "structured_outputs", "json and"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs", "nothing"),
        ({"structured_outputs": {"xml": "b"}}, "structured_outputs", "xml is not known"),
        ({"response_format": {"type": "xml"}}, "response_format", "'xml'"),
        ({"response_format": FORMAT, "guided_regex": "b"}, "response_format", "leave one"),
        ({"guided_json": "[]"}, "structured_outputs", "a JSON schema"),
        ({"guided_json": ""}, "structured_outputs", "not empty"),
        ({"guided_choice": []}, "structured_outputs", "choice holds 0"),
        ({"guided_choice": ["b"] * 2000}, "structured_outputs", "2000"),
        ({"guided_choice": ["b"] * 10**5}, "guided_choice", "100000"),
        ({"guided_regex": "b" * 10**6}, "structured_outputs", "1000000 bytes"),
        ({"guided_regex": "("}, "structured_outputs", "unclosed group"),
        ({"guided_grammar": "start: foo"}, "structured_outputs", "unknown name"),
        ({"guided_json": {"a": [0] * 10**6}}, "structured_outputs", "bytes"),
        ({"guided_regex": "zz"}, "structured_outputs", "no token of this model"),
        ({"guided_json": {"$ref": "#"}}, "structured_outputs", "$ref"),
        ({"guided_json": "false"}, "structured_outputs", "structured_outputs.json"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_matched_is_told_in_the_apis_form(server, changes, param, words):
    for url, prompt in PROMPTS.items():
        for stream in (False, True):
            body = BODY | prompt | changes | {"stream": stream}
            response = server.client.post(url, json=body)
            assert response.status_code == 400, response.text
            error = error_of(response)
            assert (error["type"], error["param"]) == ("invalid_request_error", param)
            assert words in error["message"]
    server.assert_unharmed()


@in_loop
async def test_one_that_nothing_allowed_can_go_on_with_ends_its_request_alone():
    async with http_served(tokenizer=JsonTokenizer()) as tested:
        canary = await tested.text()
        body = BODY | PROMPTS[COMPLETIONS] | {"guided_regex": "bc", "allowed_token_ids": [5]}
        response = await tested.post(body)
        assert response.status_code == 400
        assert "allowed_token_ids" in error_of(response)["message"]
        *_, last = await tested.events(body)
        assert json.loads(last)["error"]["type"] == "invalid_request_error"
        assert await tested.text() == canary
