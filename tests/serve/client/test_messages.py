"""What callers ask for arrives as they said it."""

from dataclasses import fields

import pytest

from jaxinfer.errors import InvalidParameter, InvalidPrompt
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.structured_outputs import StructuredOutputsParams
from serve.client.messages import generate_request
from serve.client.options import SamplingOptions
from serve.frontend import Conversation
from serve.rpc.convert import read_ask

EVERYTHING = {
    "n": 3,
    "temperature": 0.5,
    "top_p": 0.25,
    "top_k": 7,
    "min_p": 0.125,
    "presence_penalty": -1.5,
    "frequency_penalty": 1.5,
    "repetition_penalty": 1.25,
    "max_tokens": 9,
    "min_tokens": 2,
    "stop": ("a", "b"),
    "stop_token_ids": (4, 5),
    "ignore_eos": True,
    "include_stop_str_in_output": True,
    "seed": 11,
    "logprobs": 2,
    "prompt_logprobs": 1,
    "logit_bias": {3: -2.5},
    "allowed_token_ids": (1, 2, 3),
    "bad_words": ("no",),
    "structured_outputs": StructuredOutputsParams(choice=("yes", "no")),
    "skip_special_tokens": False,
    "detokenize": False,
}


def asked(prompt="a", **options):
    return read_ask(generate_request(prompt, options), None)


def test_the_keywords_are_the_fields_of_sampling_params():
    names = {field.name for field in fields(SamplingParams)}
    assert set(SamplingOptions.__annotations__) == names
    assert set(EVERYTHING) == names


@pytest.mark.parametrize("name", EVERYTHING)
def test_each_parameter_arrives(name):
    given = {name: EVERYTHING[name]}
    assert asked(**given).params == SamplingParams(**given)


def test_all_parameters_arrive_together_by_keyword_or_as_one():
    assert asked(**EVERYTHING).params == SamplingParams(**EVERYTHING)
    assert asked(params=SamplingParams(**EVERYTHING)).params == SamplingParams(**EVERYTHING)
    changed = SamplingParams(**EVERYTHING | {"n": 1})
    assert asked(params=SamplingParams(**EVERYTHING), n=1).params == changed


def test_defaults_arrive_as_defaults():
    assert asked().params == SamplingParams()
    assert asked(max_tokens=None).params.max_tokens is None


def test_what_the_wire_has_no_form_for_arrives_with_the_same_meaning():
    assert asked(top_k=-1).params.top_k == 0
    assert asked(seed=-1).params.seed == 2**64 - 1


def test_prompts_arrive_in_each_form():
    talk = [{"role": "user", "content": "hi"}]
    assert asked("text").prompt == "text"
    assert list(asked([1, 2]).prompt) == [1, 2]
    assert list(asked({"prompt_token_ids": [1, 2]}).prompt) == [1, 2]
    assert asked({"prompt": "text"}).prompt == "text"
    assert asked(talk).prompt == Conversation(messages=talk)
    assert list(asked([]).prompt) == []


def test_the_rest_of_a_request_arrives():
    ask = asked(request_id="r", model="m", priority=-3, cache_salt="s", bypass_prefix_cache=True)
    assert (ask.request_id, ask.model, ask.priority) == ("r", "m", -3)
    assert (ask.cache_salt, ask.bypass_prefix_cache) == ("s", True)


def test_each_request_has_an_id_of_its_own():
    assert asked().request_id != asked().request_id != ""


@pytest.mark.parametrize(
    "prompt",
    [[-1], [2**32], ["a"], [0.5], [{"role": "user"}], [{"role": "user", "content": 3}], {"x": 1}],
)
def test_a_prompt_that_no_message_holds_is_refused_here(prompt):
    with pytest.raises(InvalidPrompt):
        asked(prompt)


@pytest.mark.parametrize(
    "given",
    [{"top_k": -2}, {"n": 2**32}, {"temperature": "hot"}, {"allowed_token_ids": []}],
)
def test_parameters_that_no_message_holds_are_refused_here(given):
    with pytest.raises(InvalidParameter):
        asked(**given)


@pytest.mark.parametrize(
    "guide",
    [{"json": '{"type": "object"}'}, {"regex": "a+"}, {"choice": ("a", "b")}, {"grammar": "x"}],
    ids=lambda guide: next(iter(guide)),
)
def test_each_kind_of_structured_outputs_arrives(guide):
    wanted = StructuredOutputsParams(**guide)
    assert asked(structured_outputs=wanted).params.structured_outputs == wanted


def test_how_large_a_guide_may_be_is_for_the_server_to_say():
    wanted = StructuredOutputsParams(regex="a" * 70_000)
    assert asked(structured_outputs=wanted).params.structured_outputs == wanted


def test_what_the_wire_cannot_say_of_structured_outputs_is_refused():
    compact = StructuredOutputsParams(json_object=True, disable_any_whitespace=True)
    with pytest.raises(InvalidParameter, match="disable_any_whitespace"):
        asked(structured_outputs=compact)
