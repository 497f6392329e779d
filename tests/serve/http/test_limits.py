"""Limits that an operator has set, as clients meet them; and bodies that no queue has room for."""

import json

import grpc
import pytest

from jaxinfer.sampling_params import RequestLimits
from jaxinfer.tokenizer.chat import ChatTemplates
from serve.proto import inference_pb2 as pb
from tests.serve.house import ChattyTokenizer, JsonTokenizer, in_loop
from tests.serve.http.house import CANARY, CHAT, error_of, http_served


class TemplateTokenizer(ChattyTokenizer):
    """Whose template counts, or repeats what it was given."""

    chat_template = (
        "{% macro spin(n) %}{% for _ in range(1000) %}{% if n %}{{ spin(n - 1) }}{% endif %}"
        "{% endfor %}{% endmacro %}"
        "{% if messages[0].role == 'system' %}{{ spin(9) }}{% endif %}"
        "{{ messages[0].content * 500 }}"
    )

    def apply_chat_template(self, messages, **given) -> str:
        templates = ChatTemplates({"default": self.chat_template}, {})
        return templates.render(messages, add_generation_prompt=True, **given)


@in_loop
async def test_how_many_prompts_a_body_may_have_can_be_set():
    async with http_served(request=RequestLimits(max_prompts=2)) as tested:
        for num_prompts, status in ((2, 200), (3, 400)):
            response = await tested.post(CANARY | {"prompt": [[1]] * num_prompts})
            assert response.status_code == status, response.text
        assert "prompt holds 3 prompts: at most 2 are allowed" in error_of(response)["message"]


@pytest.mark.parametrize(
    ("limit", "fits", "refused", "words"),
    [
        ({"max_guide_bytes": 5}, {"regex": "a{2}"}, {"regex": "a{1,2}"}, "6 bytes: at most 5 are"),
        (
            {"max_schema_nesting": 1},
            {"json": {"enum": 1}},
            {"json": {"enum": ["a"]}},
            "nested more than 1 levels",
        ),
        ({"max_guide_seconds": 0.01}, None, {"json": {"pattern": "a"}}, " 0.01 s"),
    ],
)
@in_loop
async def test_what_a_guide_may_be_can_be_set(limit, fits, refused, words):
    async with http_served(request=RequestLimits(**limit), tokenizer=JsonTokenizer()) as tested:
        response = await tested.post(CANARY | {"structured_outputs": refused})
        assert response.status_code == 400, response.text
        assert words in error_of(response)["message"]
        if fits is not None:
            other = await tested.post(CANARY | {"structured_outputs": fits})
            assert words not in other.text


@in_loop
async def test_what_a_chat_template_may_take_can_be_set():
    limits = RequestLimits(max_template_characters=1000, max_template_seconds=1)
    async with http_served(request=limits, tokenizer=TemplateTokenizer()) as tested:
        for role, content, words in (
            ("user", "ab", None),
            ("user", "abc", "more than 1000 characters (max_template_characters)"),
            ("system", "a", "more than 1 s (max_template_seconds)"),
        ):
            body = {"messages": [{"role": role, "content": content}], "max_tokens": 1}
            response = await tested.post(body, CHAT)
            assert response.status_code == (200 if words is None else 400), response.text
            assert words is None or words in error_of(response)["message"]
        body["chat_template_kwargs"] = {"template_limits": None}
        assert "must not hold 'template_limits'" in (await tested.post(body, CHAT)).text


@in_loop
async def test_more_prompts_than_the_queue_has_room_for_are_never_worth_another_try():
    async with http_served(max_num_seqs=2, max_waiting_requests=2) as tested:
        for stream in (False, True):
            response = await tested.post(CANARY | {"prompt": [[1]] * 20, "stream": stream})
            assert response.status_code == 400
            assert "retry-after" not in response.headers
            error = error_of(response)
            assert (error["type"], error["param"]) == ("invalid_request_error", "prompt")
            for words in ("20 prompts", "has room for 2", "--max-waiting-requests 20"):
                assert words in error["message"]
        response = await tested.post(CANARY | {"prompt": [[1]] * 2})
        assert response.status_code == 200, response.text
        assert len(response.json()["choices"]) == 2


@in_loop
async def test_as_many_prompts_as_the_queue_has_room_for_are_served_whatever_the_slots():
    async with http_served(max_num_seqs=2, max_waiting_requests=256) as tested:
        response = await tested.post({"prompt": [[1]] * 256, "max_tokens": 1})
        assert response.status_code == 200, json.dumps(response.json())[:200]
        assert len(response.json()["choices"]) == 256


@pytest.mark.parametrize(
    ("prompt", "num_tokens"),
    [
        ([[1] * 4, [2] * 4, [3] * 4], 12),
        (["a" * 4] * 5, 20),
        ([[1] * 10, [1]], 11),
        ([1] * 11, 11),
        ("a" * 11, 11),
    ],
)
@in_loop
async def test_the_same_holds_of_tokens(prompt, num_tokens):
    async with http_served(max_num_seqs=1, max_waiting_tokens=10) as tested:
        response = await tested.post({"prompt": prompt})
        assert response.status_code == 400, response.text
        message = error_of(response)["message"]
        assert f"holds {num_tokens} prompt tokens" in message
        assert "has room for 10" in message
        assert message.endswith(f"--max-waiting-tokens {num_tokens}")
        await tested.idle()  # what was handed in before the refusal is gone at the next step
        assert (await tested.post({"prompt": [[1] * 5] * 2})).status_code == 200
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await tested.tokens(pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1] * 11)))
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "prompt holds 11 prompt tokens" in error.value.details()
