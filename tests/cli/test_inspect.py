"""``inspect``: the facts, for people and as JSON."""

import dataclasses
import json
import re

import pytest

from jaxinfer.llm.facts import model_facts
from jaxinfer.llm.opening import open_model


def test_json_is_the_facts(run_json, tiny_directory):
    words = ["inspect", tiny_directory, "--load-format=dummy", "--memory=1MiB", "--page-size=4"]
    [document] = run_json(*words)
    opened = open_model(tiny_directory, load_format="dummy")
    facts = model_facts(opened, page_size=4, memory_bytes=2**20)
    assert document == json.loads(json.dumps(dataclasses.asdict(facts)))


def test_people_read_layers_bytes_and_the_longest_context(run):
    status, out, _ = run("inspect", "gemma3-270m", "--load-format=dummy", "--memory", "4G")
    assert status == 0
    assert "268,098,176" in out
    assert "3 see every token" in out
    assert "15 see a window of 512 tokens" in out
    assert "32,768 tokens in 4.00 GiB" in out
    assert "tokenizer       none" in out


def test_people_read_what_is_shared_what_is_active_and_the_largest_batch(run):
    words = ["--memory=80GiB", "--context=8192"]
    _, out, _ = run("inspect", "gemma3n-e4b", *words)
    assert "7 see every token, 3 of them through the keys and values of another" in out
    assert "8,192 bytes a token" in out
    assert "sequences of 8,192 tokens in 80.00 GiB" in out
    _, out, _ = run("inspect", "gemma4-26b-a4b", *words)
    assert "25,233,141,790, of which a token uses 3,822,530,590" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--memory", "lots"], "'lots' is no number of bytes.*such as 80GiB"),
        (["--memory", "80QiB"], "'80QiB' is no number of bytes"),
        (["--memory", "nan"], "'nan' is no number of bytes"),
        (["--memory", ""], "'' is no number of bytes"),
        (["--memory=-1"], "'-1' is no number of bytes"),
        (["--context", "0"], "'0' is no number of tokens.*1 or more"),
        (["--context", "1e3"], "'1e3' is no number of tokens"),
        (["--context", "9000"], "context = 9000 must be between 1 and the 8192"),
        (["--page-size", "0"], "page_size = 0 must be at least 1"),
    ],
)
def test_a_wrong_option_is_refused_with_what_is_allowed(run, words, message):
    status, out, err = run("inspect", "smollm2-135m", "--load-format=dummy", *words)
    assert (status, out) == (2, "")
    assert re.search(message, err)


def test_the_tokenizer_is_shown(run, tiny_directory):
    _, out, _ = run("inspect", tiny_directory, "--load-format=dummy")
    assert "258 tokens, a chat template, begin 256 (not added), ends 257" in out
