"""Whatever is in a file of requests, each line is answered exactly once, in however many runs."""

import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve.batch.lines import URLS
from serve.batch.source import Contents, Source
from tests.serve.batch.house import MAX_LEN, engine, line, read_lines, run_batch

texts = st.text("abcdefghijklü \n", max_size=8)
numbers = st.one_of(
    st.integers(-2, 3), st.sampled_from([2**32, -(2**70), 0.5, float("nan"), float("inf")])
)
anything = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
fields = st.sampled_from(
    ["prompt", "messages", "n", "max_tokens", "top_p", "stop", "logprobs", "echo", "stream", "x"]
)
bodies = st.fixed_dictionaries(
    {},
    optional={
        "prompt": texts | st.lists(st.integers(-1, 13), max_size=5),
        "messages": st.lists(st.fixed_dictionaries({"role": texts, "content": texts}), max_size=2),
        "max_tokens": st.integers(-1, MAX_LEN + 1),
        "n": st.integers(0, 3),
        "seed": st.integers(0, 3),
        "stop": texts,
    },
)
valid = st.builds(
    lambda url, prompt, num_tokens: (
        line("", url, max_tokens=num_tokens)
        | ({} if url == URLS[0] else {"body": {"prompt": prompt, "max_tokens": num_tokens}})
    ),
    st.sampled_from(URLS),
    st.text("abcdefghijkl", min_size=1, max_size=9),
    st.integers(1, 9),
)
odd = st.builds(
    lambda url, method, body, more: {"url": url, "method": method, "body": body | more},
    st.sampled_from([*URLS, "/v1", None]),
    st.sampled_from(["POST", "GET", 3]),
    bodies,
    st.dictionaries(fields, anything, max_size=2),
)
ids = st.text(min_size=1, max_size=6) | st.sampled_from(["\ud800", "line 1", "1", '"', "\\u0000"])


@st.composite
def files(draw) -> bytes:
    """Lines with ids of their own, without any, and of no kind at all."""
    entries = draw(st.lists(valid | odd, max_size=8))
    custom_ids = draw(st.lists(ids, min_size=8, max_size=8, unique=True))
    raws = [
        json.dumps(entry | {"custom_id": custom_id}).encode()
        for entry, custom_id in zip(entries, custom_ids, strict=False)
    ]
    raws += [json.dumps(each).encode() for each in draw(st.lists(anything | odd, max_size=3))]
    raws += draw(st.lists(st.binary(max_size=20), max_size=3))
    return draw(st.sampled_from([b"\n", b"\r\n"])).join(draw(st.permutations(raws)))


@pytest.fixture(scope="module")
def llm():
    with engine() as running:
        yield running


@settings(
    max_examples=20,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(files(), st.lists(st.tuples(st.integers(1, 4), st.floats(0, 1)), min_size=1, max_size=3))
def test_each_line_is_answered_once(llm, tmp_path_factory, content, interruptions):
    folder = tmp_path_factory.mktemp("files")
    inputs, whole, torn = (folder / name for name in ("in.jsonl", "whole.jsonl", "torn.jsonl"))
    inputs.write_bytes(content)
    with Source.open(str(inputs)) as source:
        lines = list(source)
        assert len(Contents.of(source).numbers) == len(lines)
    raws = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    num_lines = sum(bool(raw.strip()) for raw in raws)
    run = run_batch(llm, inputs, whole)
    assert run.failure is None
    results = read_lines(whole)
    assert run.progress.num_done == num_lines == len(lines) == len(results)
    assert sorted(map(name_of_result, results)) == sorted(map(name_of_line, lines))
    # The same in several runs, each cut off where it may be.
    for stop_after, share in interruptions:
        run_batch(
            llm,
            inputs,
            torn,
            on_progress=lambda run, n=stop_after: (
                run.stop() if run.progress.num_done >= n else None
            ),
        )
        os.truncate(torn, int(torn.stat().st_size * share))
    run_batch(llm, inputs, torn)
    assert statuses(read_lines(torn)) == statuses(results)


def name_of_line(each) -> str:
    return f"line {each.number}" if each.custom_id is None else f"id {each.custom_id}"


def name_of_result(result: dict) -> str:
    if result["custom_id"] is None:
        return f"line {result['error']['line']}"
    return f"id {result['custom_id']}"


def statuses(results: list[dict]) -> dict[str, int | str]:
    """What was said of each line; texts that were sampled without a seed differ."""
    found = {
        name_of_result(each): (each["response"] or {}).get("status_code") or each["error"]["code"]
        for each in results
    }
    assert len(found) == len(results)
    return found
