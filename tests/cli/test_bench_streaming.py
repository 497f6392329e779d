"""``bench streaming``: a server in a process of its own, beside the LLM of this one."""

import pytest

from jaxinfer.cli import bench_streaming
from tests.llm.tiny_model import SETTINGS

SMALL = (
    *("bench", "streaming", "--num-prompts=3", "--input-len=9", "--output-len=5"),
    "--max-concurrency=2",
)


def test_both_sides_have_the_same_load_round_by_round(run_json, loaded, tiny_directory):
    names = ("load_format", "max_num_batched_tokens", "page_size", "num_pages")
    flags = [f"--{name.replace('_', '-')}={SETTINGS[name]}" for name in names]
    [report] = run_json(*SMALL, "--rounds=2", f"--model={tiny_directory}", *flags)
    assert report["num_rounds"] == 2
    for side in ("llm", "grpc"):
        throughputs = report[f"{side}_output_throughputs"]
        assert len(throughputs) == 2
        assert report[f"{side}_output_throughput"] == pytest.approx(sum(throughputs) / 2, abs=0.1)
    assert report["ratio_low"] <= report["ratio"] <= report["ratio_high"]
    [asked] = loaded
    assert asked["enable_prefix_caching"] is False
    assert asked["max_num_seqs"] == 2


def test_a_server_that_does_not_start_is_told_with_its_words(run, loaded, monkeypatch):
    monkeypatch.setattr(bench_streaming, "model_words", lambda _: ["--no-such-flag"])
    status, out, err = run(*SMALL)
    assert (status, out) == (1, "")
    assert "--no-such-flag" in err


@pytest.mark.parametrize("word", ["--rounds=0", "--max-concurrency=-1"])
def test_sizes_that_measure_nothing_are_wrong_usage(run, loaded, word):
    status, out, err = run(*SMALL, word)
    assert (status, out) == (2, "")
    assert f"{word.replace('=', ' ')} must be at least 1" in err
    assert not loaded
