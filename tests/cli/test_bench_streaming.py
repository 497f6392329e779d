"""``bench streaming``: a server in a process of its own, beside the LLM of this one."""

import signal
import subprocess

import pytest

from jaxinfer.cli import bench_streaming
from tests.llm.tiny_model import SETTINGS

SMALL = (
    *("bench", "streaming", "--num-prompts=3", "--input-len=9", "--output-len=5"),
    "--max-concurrency=2",
)


@pytest.fixture
def children(monkeypatch):
    """The processes that were started, none of which may be left."""
    started = []

    class Noted(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(bench_streaming.subprocess, "Popen", Noted)
    yield started
    assert all(child.poll() is not None for child in started)


def test_both_sides_are_measured_in_each_round(run_json, loaded, tiny_directory, children):
    names = ("load_format", "max_num_batched_tokens", "page_size", "num_pages")
    flags = [f"--{name.replace('_', '-')}={SETTINGS[name]}" for name in names]
    [report] = run_json(*SMALL, "--rounds=2", f"--model={tiny_directory}", *flags)
    assert report["rounds"] == 2
    for side in ("llm", "grpc"):
        throughputs = report[f"{side}_output_throughputs"]
        assert len(throughputs) == 2
        assert report[f"median_{side}_throughput"] == pytest.approx(sum(throughputs) / 2, abs=0.1)
    [asked] = loaded
    assert asked["enable_prefix_caching"] is False
    assert asked["max_num_seqs"] == 2
    [server] = children
    assert server.returncode == 0  # it was told to end, and did


def test_a_server_that_does_not_start_is_told_with_its_words(run, loaded, monkeypatch, children):
    monkeypatch.setattr(bench_streaming, "words_given", lambda *_: ["--no-such-flag"])
    status, out, err = run(*SMALL)
    assert (status, out) == (1, "")
    assert "did not start" in err
    assert "--no-such-flag" in err
    assert len(children) == 1


SERVER = (
    "import sys; print('{\"grpc\": \"127.0.0.1:1\"}', flush=True); print('why', file=sys.stderr)"
)


def signalled(signum):
    with bench_streaming._sigterm_unwinds(), bench_streaming._server([]) as target:
        assert target == "127.0.0.1:1"
        signal.raise_signal(signum)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_and_then_the_command(signum, monkeypatch, children):
    serve = ("-c", f"{SERVER}; import time; time.sleep(600)")
    monkeypatch.setattr(bench_streaming, "_SERVE", serve)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit if signum == signal.SIGTERM else KeyboardInterrupt):
        signalled(signum)
    assert signal.getsignal(signal.SIGTERM) is before
    assert len(children) == 1


def test_a_server_that_ends_early_says_why(run, loaded, monkeypatch, children):
    monkeypatch.setattr(bench_streaming, "_SERVE", ("-c", SERVER))
    status, _, err = run(*SMALL)
    assert status == 1
    assert "3 requests failed" in err
    assert err.rstrip().endswith("the server ended: why")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("--rounds=0", "--rounds 0 must be at least 1"),
        ("--num-prompts=0", "--num-prompts 0 must be at least 1"),
        ("--max-concurrency=-1", "--max-concurrency -1 must be at least 1"),
        ("--max-num-seqs=3", "--max-num-seqs 3 is more than --max-concurrency 2"),
    ],
)
def test_sizes_that_measure_nothing_are_wrong_usage(run, loaded, word, said):
    status, out, err = run(*SMALL, word)
    assert (status, out) == (2, "")
    assert said in err
    assert not loaded


def test_a_load_that_no_context_holds_starts_no_server(run, loaded, children):
    status, out, err = run(*SMALL, "--input-len=64")
    assert (status, out) == (2, "")
    assert "context has 64" in err
    assert not children
