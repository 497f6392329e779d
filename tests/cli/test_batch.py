"""``batch``: what it refuses before a model is loaded, what it says, and its exit statuses."""

import io
import json
import os
import sys
import threading

import pytest

from serve.batch.ledger import Ledger
from serve.model import ServedModel
from tests.serve.batch.house import FakeLLM, by_id, line, read_lines, requests, write_lines


@pytest.fixture
def loads(monkeypatch):
    """Models that were asked for; a command gets one that can be worked out by hand."""
    asked = []

    def load(**settings):
        asked.append(settings)
        return FakeLLM()

    monkeypatch.setattr("jaxinfer.cli.batch.load_llm", load)
    monkeypatch.setattr(ServedModel, "of", lambda llm, name: llm.model)
    return asked


@pytest.fixture
def paths(tmp_path):
    return write_lines(tmp_path / "in.jsonl", requests(6)), tmp_path / "out.jsonl"


def test_it_answers_all_and_says_so_once(run, loads, paths):
    status, out, err = run("batch", *paths, "--json", "--max-num-seqs=3")
    assert status == 0, err
    assert loads == [
        {"model": "smollm2-135m", "load_format": "auto", "dtype": "auto"}
        | {"kv_cache_dtype": "auto", "max_num_seqs": 3}
    ]
    assert len(by_id(read_lines(paths[1]))) == 6
    [document] = [json.loads(each) for each in out.splitlines()]
    counts = {"total": 6, "completed": 6, "failed": 0, "remaining": 0, "stopped_by": None}
    assert {name: document[name] for name in counts} == counts
    assert document["num_requests"] == 6
    assert document["total_input_tokens"] == 18
    assert "6 of 6 done" in err


def test_where_all_is_done_no_model_is_loaded(run, loads, paths):
    run("batch", *paths)
    before = paths[1].read_bytes()
    paths[1].write_bytes(before + b'{"id": "batch')
    status, out, err = run("batch", *paths, "--json")
    assert (status, len(loads)) == (0, 1)
    assert "ends in a part of a line, 13 bytes: it goes" in err
    assert json.loads(out)["request_throughput"] is None
    assert paths[1].read_bytes() == before


def test_errors_fail_the_command_when_that_is_wished(run, loads, paths):
    write_lines(paths[0], [line("a"), line("b", n=0)])
    assert run("batch", *paths)[0] == 0
    status, out, err = run("batch", *paths, "--strict")
    assert (status, out) == (1, "")
    assert "2 of 2 done, 1 of them with an error" in err
    write_lines(paths[0], [line("a"), line("b")])
    assert run("batch", *paths, "--strict", "--retry-errors")[0] == 0


def test_another_inputs_results_are_kept_unless_they_are_to_be_lost(run, loads, paths):
    run("batch", *paths)
    before = paths[1].read_bytes()
    write_lines(paths[0], [line("another")])
    status, out, err = run("batch", *paths)
    assert (status, out) == (2, "")
    assert "'request-" in err
    assert "--overwrite" in err
    assert paths[1].read_bytes() == before
    assert len(loads) == 1
    assert run("batch", *paths, "--overwrite")[0] == 0
    assert list(by_id(read_lines(paths[1]))) == ["another"]


def test_a_request_that_was_changed_since_is_named_before_a_model_is_loaded(run, loads, paths):
    run("batch", *paths)
    before = paths[1].read_bytes()
    write_lines(paths[0], [*requests(6)[:5], line("request-5", prompt="other")])
    status, out, err = run("batch", *paths)
    assert (status, out, len(loads)) == (2, "", 1)
    assert "custom_id 'request-5', whose request in" in err
    assert "--overwrite" in err
    assert paths[1].read_bytes() == before


def test_a_model_that_cannot_be_loaded_loses_nothing(run, paths):
    paths[1].write_bytes(b"my notes")
    status, out, err = run("batch", *paths, "--overwrite", "--model", "nothing here")
    assert (status, out) == (1, "")
    assert "no model 'nothing here'" in err
    assert paths[1].read_bytes() == b"my notes"


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["absent.jsonl", "out.jsonl"], 1, "absent.jsonl"),
        ([".", "out.jsonl"], 2, "'.' is a directory"),
        (["in.jsonl", "."], 1, "directory"),
        (["in.jsonl", "absent/out.jsonl"], 1, "absent/out.jsonl"),
        (["in.jsonl", "in.jsonl"], 2, "in.jsonl and in.jsonl are one file"),
        (["in.jsonl", "link.jsonl"], 2, "in.jsonl and link.jsonl are one file"),
        (["in.jsonl", "hard.jsonl"], 2, "in.jsonl and hard.jsonl are one file"),
        (["in.jsonl", "/dev/null"], 2, "no regular file"),
        (["in.jsonl", "-", "--json"], 2, "--json is for a file of results"),
        (["in.jsonl", "-", "--overwrite"], 2, "--overwrite is for a file of results"),
        (["in.jsonl", "-", "--retry-errors"], 2, "--retry-errors is for a file of results"),
        (["twice.jsonl", "out.jsonl"], 2, "lines 1 and 3 of twice.jsonl"),
    ],
)
def test_wrong_usage_is_one_line_before_a_model_is_loaded(
    run, loads, paths, monkeypatch, words, status, message
):
    monkeypatch.chdir(paths[0].parent)
    os.symlink("in.jsonl", "link.jsonl")
    os.link("in.jsonl", "hard.jsonl")
    write_lines(paths[0].with_name("twice.jsonl"), [line("a"), line("b"), line("a")])
    before = paths[0].read_bytes()
    found, out, err = run("batch", *words)
    assert (found, out) == (status, "")
    [said] = err.splitlines()
    assert said.startswith("jaxinfer: error: ")
    assert message in said
    assert loads == []
    assert paths[0].read_bytes() == before


def test_a_second_process_is_told_of_the_first(run, loads, paths):
    with Ledger(str(paths[1])):
        status, _, err = run("batch", *paths)
    assert status == 1
    assert "another process is writing to" in err
    assert loads == []


def test_standard_input_and_output_are_files_like_others(run, loads, paths, monkeypatch):
    class Stdin:
        buffer = io.BytesIO(paths[0].read_bytes())

    monkeypatch.setattr("sys.stdin", Stdin)
    status, out, err = run("batch", "-", "-")
    assert status == 0, err
    assert len(by_id([json.loads(each) for each in out.splitlines()])) == 6


def test_what_can_be_read_once_only_is_kept(run, loads, paths):
    fifo = paths[0].with_name("fifo")
    os.mkfifo(fifo)
    writer = threading.Thread(target=lambda: fifo.write_bytes(paths[0].read_bytes()))
    writer.start()
    status, _, err = run("batch", fifo, paths[1])
    writer.join()
    assert status == 0, err
    assert len(by_id(read_lines(paths[1]))) == 6


def test_standard_input_that_is_closed_is_said(run, loads, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    status, _, err = run("batch", "-", "out.jsonl")
    assert (status, loads) == (2, [])
    assert "standard input is closed" in err


def test_a_reader_that_leaves_ends_the_command_quietly(paths):
    command = f"{sys.executable} -m tests.serve.batch.child {paths[0]} - | true"
    assert os.system(f"bash -c 'set -o pipefail; {command} 2>{paths[1]}'") >> 8 in (0, 1)
    assert "Traceback" not in paths[1].read_text()
