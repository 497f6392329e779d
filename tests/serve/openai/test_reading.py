"""Which bodies are understood, and what the others are told."""

import pytest

from jaxinfer.errors import (
    CapacityError,
    InvalidParameter,
    InvalidPrompt,
    JaxInferError,
    PromptTooLong,
    Unsupported,
)
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.structured_outputs import StructuredOutputsParams
from serve.errors import Draining, NotFound
from serve.frontend import Conversation
from serve.openai import ENDPOINTS, error_body, read_body

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]


def completion(**fields):
    return read_body(COMPLETIONS, {"prompt": "hello"} | fields)


def chat(**fields):
    return read_body(CHAT, {"messages": HELLO} | fields)


def test_what_a_body_leaves_out_keeps_its_default():
    [ask] = completion().asks
    assert ask.params == SamplingParams()
    assert (ask.prompt, ask.model, ask.timeout) == ("hello", "", None)
    [ask] = chat(n=None).asks
    assert ask.params == SamplingParams(max_tokens=None)
    assert ask.prompt == Conversation(messages=HELLO)
    assert read_body(COMPLETIONS, {"prompt": "a"}, timeout=2.5).asks[0].timeout == 2.5
    assert set(ENDPOINTS) == {COMPLETIONS, CHAT}


def test_each_field_reaches_its_parameter():
    fields = {
        "n": 2,
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 3,
        "min_p": 0.1,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "repetition_penalty": 1.5,
        "max_tokens": 7,
        "min_tokens": 2,
        "seed": -3,
        "stop": ["x", "yy"],
        "stop_token_ids": [1],
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "allowed_token_ids": [1, 2],
        "bad_words": ["no"],
        "prompt_logprobs": 1,
    }
    assert completion(max_tokens=3, max_completion_tokens=5).asks[0].params.max_tokens == 5
    expected = SamplingParams(**fields, logit_bias={5: -1.0}, logprobs=4)
    asked = completion(**fields, logit_bias={"5": -1}, logprobs=4, priority=3, cache_salt="s")
    [ask] = asked.asks
    assert ask.params == expected
    assert (ask.priority, ask.cache_salt) == (3, "s")
    [ask] = chat(
        **fields, logit_bias={"5": -1}, logprobs=True, top_logprobs=4, max_completion_tokens=7
    ).asks
    assert ask.params == expected


@pytest.mark.parametrize("prompt", ["a", [1, 2], ["a", "b"], [[1], [2, 3]], ["a", [1]]])
def test_prompts_are_texts_ids_or_lists_of_them(prompt):
    several = isinstance(prompt, list) and not isinstance(prompt[0], int)
    asked = completion(prompt=prompt, request_id="r")
    assert [ask.prompt for ask in asked.asks] == (prompt if several else [prompt])
    ids = [f"cmpl-r-{index}" for index in range(len(prompt))] if several else ["cmpl-r"]
    assert [ask.request_id for ask in asked.asks] == ids


def test_what_changes_nothing_is_ignored():
    ignored = {"user": "u", "metadata": {"a": [1]}, "store": True, "service_tier": "auto"}
    nothing = {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}}
    assert chat(**ignored, **nothing, audio=None).asks[0].params == chat().asks[0].params
    assert completion(**ignored, suffix="", best_of=1).asks[0].params == SamplingParams()


@pytest.mark.parametrize("form", ["text", "lines"])
def test_templates_see_texts_and_what_else_they_are_given(form):
    content = {"text": "a\nb", "lines": [{"type": "text", "text": each} for each in "ab"]}[form]
    messages = [{"role": "user", "content": content, "name": "n", "tool_calls": None}]
    [ask] = read_body(
        CHAT,
        {
            "messages": messages,
            "chat_template_kwargs": {"enable_thinking": False},
            "add_generation_prompt": False,
        },
    ).asks
    assert ask.prompt == Conversation(
        messages=[{"role": "user", "content": "a\nb", "name": "n"}],
        template={"enable_thinking": False, "add_generation_prompt": False},
    )


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def of_schema(**fields):
    return {"response_format": {"type": "json_schema", "json_schema": fields}}


@pytest.mark.parametrize(
    ("fields", "kinds"),
    [
        ({"response_format": {"type": "json_object"}}, {"json_object": True}),
        (of_schema(schema=SCHEMA), {"json": SCHEMA}),
        (of_schema(name="n", description="d", schema={}, strict=False), {"json": {}}),
        ({"structured_outputs": {"json": SCHEMA, "regex": None}}, {"json": SCHEMA}),
        ({"structured_outputs": {"json": "{}"}}, {"json": "{}"}),
        ({"structured_outputs": {"regex": "a+"}}, {"regex": "a+"}),
        ({"structured_outputs": {"choice": ["a", "b"]}}, {"choice": ["a", "b"]}),
        ({"structured_outputs": {"grammar": "g"}}, {"grammar": "g"}),
        (
            {"structured_outputs": {"json_object": True, "disable_any_whitespace": True}},
            {"json_object": True, "disable_any_whitespace": True},
        ),
        ({"guided_json": SCHEMA}, {"json": SCHEMA}),
        ({"guided_json": "{}"}, {"json": "{}"}),
        ({"guided_regex": "a+", "response_format": {"type": "text"}}, {"regex": "a+"}),
        ({"guided_choice": ["a"], "structured_outputs": None}, {"choice": ["a"]}),
        ({"guided_grammar": "g"}, {"grammar": "g"}),
    ],
    ids=str,
)
def test_what_outputs_must_match_can_be_said_in_three_ways(fields, kinds):
    for ask in (completion, chat):
        [one] = ask(**fields).asks
        assert one.params.structured_outputs == StructuredOutputsParams(**kinds)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"response_format": "json"}, "response_format = 'json' .* an object"),
        ({"response_format": {}}, "response_format.type is missing"),
        ({"response_format": {"type": "xml"}}, r"response_format.type = 'xml' .*'json_schema'"),
        ({"response_format": {"type": "text", "x": 1}}, "response_format.x is not known"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema is missing"),
        (of_schema(name="n"), "response_format.json_schema.schema is missing"),
        (of_schema(schema="{}"), "response_format.json_schema.schema = '{}' .*dictionary"),
        (of_schema(schema={}, strct=True), "response_format.json_schema.strct is not known"),
        (
            {"response_format": {"type": "json_object", "json_schema": {"schema": {}}}},
            "response_format.json_schema needs type = 'json_schema', not 'json_object'",
        ),
        ({"structured_outputs": {"xml": "a"}}, "structured_outputs.xml is not known"),
        ({"structured_outputs": {"json": 5, "regex": 5}}, "structured_outputs.json = 5 .* or "),
        ({"structured_outputs": {"choice": "a"}}, "structured_outputs.choice = 'a' .*list"),
        ({"structured_outputs": {"choice": [1]}}, r"structured_outputs.choice\[0\] = 1"),
        (
            {"structured_outputs": {"choice": [1] * 10**6}},
            "structured_outputs.choice holds 1000000",
        ),
        ({"guided_choice": [1] * 10**6}, "guided_choice holds 1000000"),
        ({"guided_json": []}, r"guided_json = \[\] .*string or a valid dictionary"),
        (
            {"guided_regex": "a", "guided_json": {}} | of_schema(schema={}),
            "response_format and guided_json and guided_regex are set",
        ),
        ({"structured_outputs": {}, "guided_regex": "a"}, "structured_outputs and guided_regex"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_no_way_to_say_it_is_named(fields, words):
    for ask in (completion, chat):
        with pytest.raises(InvalidParameter, match=words) as caught:
            ask(**fields)
        assert len(str(caught.value)) < 1000


HUGE = 10**5000


@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        ({"temperature": float("nan")}, InvalidParameter, "temperature = nan"),
        ({"temperature": float("inf")}, InvalidParameter, "temperature = inf"),
        ({"temperature": "hot"}, InvalidParameter, "temperature = 'hot'"),
        ({"temperature": True}, InvalidParameter, "temperature = True"),
        ({"temperature": 10**400}, InvalidParameter, "temperature"),
        ({"n": "1"}, InvalidParameter, "n = '1'"),
        ({"n": True}, InvalidParameter, "n = True"),
        ({"n": 1.5}, InvalidParameter, "n = 1.5"),
        ({"n": [HUGE]}, InvalidParameter, "n = "),
        ({"stop": 5}, InvalidParameter, "stop = 5 .*string or a valid list"),
        ({"stop": [1]}, InvalidParameter, "stop"),
        ({"stop": ["x"] * 10**5}, InvalidParameter, "stop holds 100000"),
        ({"stop_token_ids": [0.5] * 10**5}, InvalidParameter, "stop_token_ids holds 100000"),
        ({"stop_token_ids": [True]}, InvalidParameter, r"stop_token_ids\[0\] = True"),
        ({"logit_bias": {"a": 1}}, InvalidParameter, "logit_bias has the key 'a'"),
        ({"logit_bias": {"1": "x"}}, InvalidParameter, "logit_bias"),
        ({"logit_bias": {str(i): "x" for i in range(10**4)}}, InvalidParameter, "holds 10000"),
        ({"stream": "yes"}, InvalidParameter, "stream = 'yes'"),
        ({"stream_options": {"include_usage": True}}, InvalidParameter, "needs stream"),
        ({"stream_options": {"x": 1}, "stream": True}, InvalidParameter, "stream_options.x"),
        ({"stream": True, "prompt_logprobs": 1}, Unsupported, "prompt_logprobs"),
        ({"frobnicate": 1}, InvalidParameter, "frobnicate is not a field"),
        ({"x" * 10**6: 1}, InvalidParameter, "is not a field"),
        ({"truncate_prompt_tokens": 4}, Unsupported, "truncate_prompt_tokens"),
        ({"use_beam_search": True}, Unsupported, "use_beam_search"),
        ({"num_beams": 10}, Unsupported, "num_beams"),
        ({"model": 5}, InvalidParameter, "model = 5"),
    ],
)
def test_what_is_wrong_in_either_body_is_named(fields, kind, words):
    for ask in (completion, chat):
        with pytest.raises(kind, match=words) as caught:
            ask(**fields)
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        ({"prompt": None}, InvalidParameter, "prompt is missing"),
        ({"prompt": []}, InvalidPrompt, "prompt is empty"),
        ({"prompt": 5}, InvalidPrompt, "prompt = 5"),
        ({"prompt": {}}, InvalidPrompt, "prompt = {}"),
        ({"prompt": [1, True]}, InvalidPrompt, r"prompt = \[1, True\]"),
        ({"prompt": [1, 0.5]}, InvalidPrompt, r"prompt = \[1, 0.5\]"),
        ({"prompt": ["a", None]}, InvalidPrompt, r"prompt\[1\] = None"),
        ({"prompt": ["a"] * 257}, InvalidPrompt, "257 prompts: at most 256"),
        ({"prompt": [0.5] * 10**6}, InvalidPrompt, "1000000 prompts"),
        ({"max_tokens": 0}, InvalidParameter, "max_tokens = 0"),
        ({"max_completion_tokens": 0}, InvalidParameter, "max_tokens = 0"),
        ({"best_of": 2}, Unsupported, "best_of = 2"),
        ({"best_of": HUGE}, Unsupported, "best_of = "),
        ({"logprobs": True}, InvalidParameter, "logprobs = True"),
        ({"suffix": "end"}, Unsupported, "suffix"),
        ({"messages": HELLO}, InvalidParameter, "messages is not a field"),
    ],
)
def test_what_is_wrong_in_a_completion_is_named(fields, kind, words):
    with pytest.raises(kind, match=words):
        completion(**fields)


@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        ({"messages": None}, InvalidParameter, "messages is missing"),
        ({"messages": "hello"}, InvalidParameter, "messages = 'hello'"),
        ({"messages": ["hello"]}, InvalidPrompt, r"messages\[0\] = 'hello'"),
        ({"messages": [{"role": "user"}]}, InvalidPrompt, r"messages\[0\].content = None"),
        ({"messages": [{"content": "a"}]}, InvalidPrompt, r"messages\[0\].role = None"),
        ({"messages": HELLO * 20_000}, InvalidPrompt, "20000 messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            Unsupported,
            "'image_url'",
        ),
        ({"messages": [HELLO[0] | {"tool_calls": [1]}]}, Unsupported, "tool_calls"),
        ({"logprobs": 1}, InvalidParameter, "logprobs = 1"),
        ({"top_logprobs": 1}, InvalidParameter, "top_logprobs needs"),
        ({"tools": [{"type": "function"}]}, Unsupported, "tools"),
        ({"echo": True}, Unsupported, "echo"),
        ({"chat_template": "{{ 1 }}"}, Unsupported, "chat_template"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, InvalidParameter, "chat_template"),
        ({"chat_template_kwargs": {"self": "x"}}, InvalidParameter, "'self'"),
    ],
)
def test_what_is_wrong_in_a_chat_is_named(fields, kind, words):
    with pytest.raises(kind, match=words):
        chat(**fields)


def test_another_url_is_not_found():
    with pytest.raises(NotFound, match="/v1/embeddings"):
        read_body("/v1/embeddings", {})


@pytest.mark.parametrize(
    ("error", "status", "kind", "param", "code"),
    [
        (InvalidParameter("n = 0 is not allowed"), 400, "invalid_request_error", "n", None),
        (InvalidParameter("nobody knows"), 400, "invalid_request_error", None, None),
        (
            PromptTooLong("the prompt is"),
            400,
            "invalid_request_error",
            None,
            "context_length_exceeded",
        ),
        (NotFound("model 'x' is"), 404, "not_found_error", "model", "model_not_found"),
        (CapacityError("full"), 429, "rate_limit_error", None, "rate_limit_exceeded"),
        (Draining("soon"), 503, "service_unavailable_error", None, None),
        (ZeroDivisionError("secret"), 500, "internal_error", None, None),
    ],
)
def test_exceptions_are_told_in_the_apis_form(error, status, kind, param, code):
    http, body, headers = error_body(error)
    message = body["error"].pop("message")
    assert (http, body) == (status, {"error": {"type": kind, "param": param, "code": code}})
    assert message == (str(error) if isinstance(error, JaxInferError) else message)
    assert "secret" not in message
    assert headers == ({"Retry-After": "1"} if status == 429 else {})
