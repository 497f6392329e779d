"""``inspect``: the facts, for people and as JSON."""

import dataclasses
import json

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


def test_the_tokenizer_is_shown(run, tiny_directory):
    _, out, _ = run("inspect", tiny_directory, "--load-format=dummy")
    assert "258 tokens, a chat template, begin 256 (not added), ends 257" in out
