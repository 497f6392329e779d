"""Lines of requests: what is one, and what is said of all others."""

import io
import json

import pytest

from jaxinfer.errors import InvalidParameter
from serve.batch.lines import BadLine, Line, read_line
from serve.batch.results import answered, read_result, refused
from serve.batch.source import Contents, Source
from tests.serve.batch.house import CHAT, line


def source_of(*raws: bytes, **limits) -> Source:
    return Source(io.BytesIO(b"".join(raws)), "in.jsonl", **limits)


def test_a_line_is_read_as_it_is():
    entry = line("a", prompt="abc")
    raw = json.dumps(entry).encode()
    read = read_line(3, raw)
    assert read == Line(
        number=3,
        custom_id="a",
        url=entry["url"],
        body=entry["body"],
        num_bytes=len(raw),
        digest=read.digest,
    )


def test_a_digest_is_of_what_is_asked_however_it_is_spelled():
    entry = line("a", prompt="é", logit_bias={"1": 1, "2": 2})
    backwards = dict(reversed(entry.items())) | {"body": dict(reversed(entry["body"].items()))}
    alike = [
        json.dumps(entry).encode(),
        json.dumps(entry, ensure_ascii=False, indent=None, separators=(" , ", " : ")).encode(),
        json.dumps(backwards).encode() + b"\r\n",
        json.dumps(entry | {"custom_id": "b", "more": 1}).encode(),
    ]
    others = [
        json.dumps(line("a", prompt="e", logit_bias={"1": 1, "2": 2})).encode(),
        json.dumps(line("a", prompt="é", logit_bias={"1": 1, "2": 1})).encode(),
        json.dumps(entry | {"url": CHAT}).encode(),
        json.dumps(entry | {"method": "GET"}).encode(),
        json.dumps(entry | {"method": "PUT"}).encode(),
        b"garbage",
        b"other garbage",
    ]
    digests = {read_line(1, raw).digest for raw in alike}
    assert len(digests) == 1
    assert len({read_line(1, raw).digest for raw in others} | digests) == len(others) + 1
    deep = b'{"custom_id": "a", "method": "POST", "url": "%s", "body": {"x": %s}}'
    for depth in (100, 900):
        raw = deep % (CHAT.encode(), b"[" * depth + b"]" * depth)
        assert read_line(1, raw).digest == read_line(2, raw + b"\n").digest


def test_contents_know_what_each_line_asks():
    raws = [b"\n", json.dumps(line("a")).encode() + b"\n", b"\n", b"garbage\n"]
    contents = Contents.of(source_of(*raws))
    for number, raw in ((2, raws[1]), (4, raws[3])):
        read = read_line(number, raw)
        assert contents.numbers[read.key] == number
        assert not contents.has_changed(read.key, read.digest)
        assert contents.has_changed(read.key, read.digest ^ 1)
        assert not contents.has_changed(read.key, None)


@pytest.mark.parametrize(
    ("raw", "code", "words"),
    [
        (b"garbage", "invalid_json_line", "not JSON"),
        (b'{"custom_id": "a"', "invalid_json_line", "not JSON"),
        (b'{"custom_id": "caf\xe9"}', "invalid_json_line", "not UTF-8"),
        (b'{"custom_id": "a", "body": {"temperature": NaN}}', "invalid_json_line", "NaN"),
        (
            b'{"custom_id": "a", "body": {"temperature": -Infinity}}',
            "invalid_json_line",
            "Infinity",
        ),
        (b"[" * 100_000, "invalid_json_line", "not JSON"),
        (b'{"a": ' * 100_000, "invalid_json_line", "not JSON"),
        (b"1" * 10_000, "invalid_json_line", "not JSON"),
        (b"[]", "invalid_json_line", "not an object"),
        (b'"text"', "invalid_json_line", "not an object"),
        (b"{}", "invalid_custom_id", "custom_id is missing"),
        (b'{"custom_id": 7}', "invalid_custom_id", "custom_id = 7 is not allowed"),
        (b'{"custom_id": ""}', "invalid_custom_id", "not empty"),
    ],
)
def test_what_has_no_custom_id_is_known_by_its_number(raw, code, words):
    bad = read_line(17, raw)
    assert isinstance(bad, BadLine)
    assert (bad.custom_id, bad.key, bad.code) == (None, 17, code)
    assert bad.message.startswith("line 17: ")
    assert words in bad.message


def without(name: str) -> dict:
    return {key: value for key, value in line("a").items() if key != name}


@pytest.mark.parametrize(
    ("entry", "code", "words"),
    [
        (without("method"), "invalid_method", "method is missing"),
        (line("a", method="GET"), "invalid_method", "method = 'GET' is not allowed: only POST is"),
        (without("url"), "invalid_url", "url is missing"),
        (line("a", url="/v1/embeddings"), "invalid_url", "there are /v1/chat/completions and"),
        (line("a", url=["/v1"]), "invalid_url", "not allowed"),
        (without("body"), "invalid_body", "body is missing"),
        (without("body") | {"body": []}, "invalid_body", "body = [] is not allowed"),
        (line("a", stream=True), "invalid_body", "stream = true is not possible"),
    ],
)
def test_what_is_no_request_keeps_its_custom_id(entry, code, words):
    bad = read_line(2, json.dumps(entry).encode())
    assert isinstance(bad, BadLine)
    assert (bad.custom_id, bad.code) == ("a", code)
    assert words in bad.message


def test_a_value_too_deep_to_be_shown_is_refused_like_any_other():
    deep = b"[" * 900 + b"]" * 900
    bad = read_line(1, b'{"custom_id": "a", "method": ' + deep + b"}")
    assert bad.code in ("invalid_method", "invalid_json_line")


def test_blank_lines_count_and_a_byte_order_mark_does_not():
    raw = json.dumps(line("a")).encode()
    lines = list(source_of(b"\xef\xbb\xbf" + raw + b"\n", b"\n", b"  \r\n", raw))
    assert [(each.number, each.custom_id) for each in lines] == [(1, "a"), (4, "a")]


def test_a_line_may_have_so_many_bytes_and_not_one_more():
    raw = json.dumps(line("a")).encode()
    long = raw[:-1] + b" }"
    lines = list(source_of(raw + b"\n", long + b"\n", raw + b"\n", long, max_line_bytes=len(raw)))
    assert [each.number for each in lines] == [1, 2, 3, 4]
    assert [getattr(each, "code", "") for each in lines] == ["", "line_too_long"] * 2
    assert lines[1].key == 2
    assert f"longer than {len(raw)} bytes" in lines[1].message


def test_a_source_can_be_read_again():
    source = source_of(b"x\n", b"y")
    assert list(source) == list(source)
    assert len(list(source)) == 2


def test_two_lines_of_one_custom_id_are_both_named():
    raws = [json.dumps(line(custom_id)).encode() + b"\n" for custom_id in "abcb"]
    with pytest.raises(InvalidParameter, match=r"lines 2 and 4 of in\.jsonl .* 'b'"):
        Contents.of(source_of(*raws))


def test_lines_without_custom_ids_are_not_each_others_double():
    assert Contents.of(source_of(b"x\n", b"x\n")).numbers == {1: 1, 2: 2}


@pytest.mark.parametrize("custom_id", ["a", "ü\u2028\n", "\ud800", "x" * 10_000, "line 1"])
def test_a_result_is_one_line_that_says_whose_it_is(custom_id):
    raw = json.dumps(line(custom_id)).encode()
    known = read_line(1, raw)
    result = answered(custom_id, status=200, body={"text": "\ud800\n\u2028"}, request_id="r")
    assert result.count(b"\n") == 1
    assert json.loads(result)["custom_id"] == custom_id
    found = read_result(result)
    assert (found.key, found.is_ok) == (known.key, True)
    failed = read_result(answered(custom_id, status=500, body={}, request_id="r"))
    assert (failed.key, failed.is_ok) == (known.key, False)


@pytest.mark.parametrize("raw", [b"x", b'{"custom_id": "a", "method": "GET"}'])
def test_a_refusal_is_known_by_what_its_line_is_known_by(raw):
    bad = read_line(5, raw)
    found = read_result(refused(bad))
    assert (found.key, found.is_ok) == (bad.key, False)
