"""Structured outputs through ``LLM``, on a device."""

import json
import re

import pytest

from jaxinfer import LLM, SamplingParams, StructuredOutputsParams
from jaxinfer.checkpoint.known import cached
from jaxinfer.errors import UnsatisfiableGuide

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["kind", "tall"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def guided(**kind):
    return StructuredOutputsParams(**kind)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_outputs_match_their_guides_beside_neighbours_that_have_none(llm, temperature):
    free = SamplingParams(temperature=temperature, seed=1, max_tokens=12, ignore_eos=True)
    [alone] = llm.generate("a", free, use_tqdm=False)
    params = [
        SamplingParams(temperature=temperature, seed=2, max_tokens=12, structured_outputs=wanted)
        for wanted in (guided(regex="[0-9]{3}-[a-f]{4}"), guided(choice=["yes", "no"]))
    ]
    number, choice, beside = llm.generate(["n", "c", "a"], [*params, free], use_tqdm=False)
    assert re.fullmatch("[0-9]{3}-[a-f]{4}", number.outputs[0].text)
    assert choice.outputs[0].text in ("yes", "no")
    assert {number.outputs[0].finish_reason, choice.outputs[0].finish_reason} == {"stop"}
    assert beside.outputs[0].token_ids == alone.outputs[0].token_ids


def test_each_of_n_samples_matches(llm):
    params = SamplingParams(n=4, seed=3, max_tokens=9, structured_outputs=guided(regex="(ab|cd)+e"))
    [output] = llm.generate("x", params, use_tqdm=False)
    for sample in output.outputs:
        whole = re.fullmatch("(ab|cd)+e", sample.text)
        assert whole or (sample.finish_reason == "length" and len(sample.token_ids) == 9)


def test_a_guide_that_allows_nothing_is_refused_and_nothing_is_begun(llm):
    params = SamplingParams(structured_outputs=guided(regex="b"), allowed_token_ids=[1])
    with pytest.raises(UnsatisfiableGuide):
        llm.generate(["a", "b"], [SamplingParams(), params], use_tqdm=False)
    assert llm.engine.num_unfinished == 0


@pytest.mark.slow
@pytest.mark.real_model
def test_a_real_model_writes_json_of_a_schema():
    if cached("smollm2-135m") is None:
        pytest.skip("smollm2-135m has not been pulled")
    asked = [{"role": "user", "content": "Describe a person as JSON."}]
    with LLM("smollm2-135m", max_num_seqs=4, max_model_len=512) as llm:
        params = SamplingParams(n=4, seed=1, max_tokens=200, structured_outputs=guided(json=PERSON))
        [output] = llm.chat(asked, params, use_tqdm=False)
    for sample in output.outputs:
        assert sample.finish_reason == "stop"
        person = json.loads(sample.text)
        assert set(person) == set(PERSON["required"])
        assert isinstance(person["name"], str)
        assert len(person["name"]) <= 40
        assert isinstance(person["age"], int)
        assert 0 <= person["age"] <= 150
        assert len(person["tags"]) <= 3
        assert set(person["tags"]) <= {"kind", "tall"}
