"""Structured outputs: what is refused before anything is compiled."""

import json
import time

import pytest

from jaxinfer.errors import InvalidParameter
from jaxinfer.sampling_params import RequestLimits, SamplingParams
from jaxinfer.structured_outputs import MAX_GUIDE_BYTES, StructuredOutputsParams

CYCLE: dict = {}
CYCLE["properties"] = CYCLE
#: Printed, it would fill every disk.
WIDE: list = []
for _ in range(60):
    WIDE = [WIDE, WIDE]


def nested(levels: int) -> str:
    """A schema with so many levels of objects."""
    return '{"properties":' * (levels - 1) + "{}" + "}" * (levels - 1)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "has nothing: set exactly one"),
        ({"json_object": False}, "has nothing: set exactly one"),
        ({"regex": "a", "choice": ["b"]}, "has regex and choice: set exactly one"),
        ({"regex": ""}, "regex = '' .* not empty"),
        ({"regex": 5}, "regex = 5 .* a string"),
        ({"regex": "x" * (MAX_GUIDE_BYTES + 1)}, "regex has 65537 bytes: at most 65536"),
        ({"grammar": "é" * (MAX_GUIDE_BYTES // 2 + 1)}, "grammar has 65538 bytes: at most 65536"),
        ({"regex": "\ud800"}, "half a surrogate pair"),
        ({"choice": "yes"}, "choice = 'yes' .* a list of strings"),
        ({"choice": []}, "choice holds 0 strings: from 1 to 1024"),
        ({"choice": ["a"] * 1025}, "choice holds 1025 strings: from 1 to 1024"),
        ({"choice": ["a", ""]}, "choice = '' .* not empty"),
        ({"choice": ["a", 5]}, "choice = 5 .* a string"),
        ({"choice": ["x" * 40_000] * 2}, "choice has more than 65536 bytes"),
        ({"json_object": 1}, "json_object = 1 .* True, False or None"),
        ({"json_object": True, "disable_any_whitespace": 1}, "disable_any_whitespace = 1"),
        ({"json": "[1]"}, "json = .* a JSON schema, which is an object"),
        ({"json": "{"}, "json = '{' is no JSON"),
        ({"json": 5}, "json = 5 .* a string"),
        ({"json": {"a": object()}}, "json is no JSON"),
        ({"json": nested(65)}, "json is nested more than 64 levels deep"),
        ({"json": "[" * MAX_GUIDE_BYTES}, "json is nested more than 64 levels deep"),
        ({"json": '{"a":' * 10_000 + "1" + "}" * 10_000}, "json is nested more than 64"),
        ({"json": "{" + '"' + '\\"' * 32_000}, "is no JSON"),
        ({"json": "x" * 2**20}, "json has 1048576 bytes: at most 65536"),
        pytest.param({"json": CYCLE}, "json is nested more than 64 levels deep", id="cycle"),
        pytest.param({"json": {"enum": WIDE}}, "json has more than 65536 bytes", id="wide"),
        pytest.param({"json": {"a": [0] * 10**6}}, "json has more than 65536", id="long"),
        pytest.param({"json": {"a": "x" * 2**20}}, "json has more than 65536", id="long text"),
        pytest.param({"json": {"x" * 2**20: 1}}, "json has more than 65536", id="long key"),
    ],
)
def test_what_is_wrong_is_named(params, message):
    with pytest.raises(InvalidParameter, match=message):
        StructuredOutputsParams(**params).guide_within()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"regex": "abcde"}, "regex has 5 bytes: at most 4 are allowed"),
        ({"choice": ["ab", "cde"]}, "choice has more than 4 bytes"),
        ({"json": {"a": 1}}, "json has .* bytes: at most 4 are allowed"),
        ({"json": nested(3)}, "json is nested more than 2 levels deep"),
        ({"json": {"a": {"b": {}}}}, "json is nested more than 2 levels deep"),
    ],
)
def test_limits_may_be_others(params, message):
    wanted = StructuredOutputsParams(**params)
    assert wanted.guide == wanted.guide_within()
    narrow = RequestLimits(
        **{"max_schema_nesting": 2} if "neste" in message else {"max_guide_bytes": 4}
    )
    for _ in range(2):
        with pytest.raises(InvalidParameter, match=message):
            SamplingParams(structured_outputs=wanted).verify(vocab_size=9, limits=narrow)
    SamplingParams(structured_outputs=wanted).verify(vocab_size=9)


def test_limits_may_be_wider():
    deep = StructuredOutputsParams(json=nested(65))
    assert deep.guide_within(max_nesting=65).text == nested(65)
    long = StructuredOutputsParams(regex="x" * (MAX_GUIDE_BYTES + 1))
    assert long.guide_within(max_bytes=MAX_GUIDE_BYTES + 1).text == long.regex
    for wanted in (deep, long):
        with pytest.raises(InvalidParameter):
            wanted.guide_within()


@pytest.mark.parametrize("schema", [nested(64), '{"enum": ["[[[[", "\\"{{{", "\\\\"]}', "true"])
def test_brackets_count_outside_of_strings_only(schema):
    guide = StructuredOutputsParams(json=schema).guide
    assert (guide.kind, guide.text) == ("json", schema)


def test_the_same_schema_as_a_dict_is_the_same_guide():
    as_dict = StructuredOutputsParams(json={"type": "object", "required": ["a"]})
    as_text = StructuredOutputsParams(json='{"type": "object", "required": ["a"]}')
    assert as_dict.guide == as_text.guide


def test_a_dict_may_be_as_long_as_a_text():
    for schema in ({"a": "x" * (MAX_GUIDE_BYTES - 9)}, {"a": [0] * ((MAX_GUIDE_BYTES - 7) // 3)}):
        text = StructuredOutputsParams(json=schema).guide.text
        assert len(text) == MAX_GUIDE_BYTES
        assert json.loads(text) == schema


def test_any_json_object_is_a_schema():
    assert StructuredOutputsParams(json_object=True).guide.kind == "json"
    compact = StructuredOutputsParams(json_object=True, disable_any_whitespace=True)
    assert compact.guide.is_compact


def test_a_guide_is_read_once():
    params = StructuredOutputsParams(regex="a")
    assert params.guide is params.guide


def test_it_takes_time_in_proportion_to_the_text():
    """Where it went back at every quotation mark, this would take minutes."""
    begin = time.process_time()
    with pytest.raises(InvalidParameter):
        StructuredOutputsParams(json='{"a": "' + '\\"' * 32_000).guide_within()
    assert time.process_time() - begin < 10
