"""``bench``: the last line is JSON with the names that ``vllm bench`` uses."""

import json

import pytest

VLLM_KEYS = {
    "duration",
    "completed",
    "failed",
    "total_input_tokens",
    "total_output_tokens",
    "request_throughput",
    "output_throughput",
    "total_token_throughput",
} | {
    f"{statistic}_{name}_ms"
    for statistic in ("mean", "median", "p99")
    for name in ("ttft", "tpot", "itl", "e2el")
}


def test_throughput(run_json, loaded):
    words = ["bench", "throughput", "--num-prompts", "6", "--input-len", "9", "--output-len", "5"]
    [report] = run_json(*words, "--goodput", "ttft:1e9", "tpot:0")
    assert set(report) >= VLLM_KEYS
    assert (report["completed"], report["failed"]) == (6, 0)
    assert (report["total_input_tokens"], report["total_output_tokens"]) == (54, 30)
    assert report["output_throughput"] == pytest.approx(30 / report["duration"])
    assert report["request_goodput"] == 0
    assert report["compiles_after_ready"] == 0
    assert report["kv_tokens_used"] <= report["kv_tokens_allocated"]
    assert report["kv_tokens_allocated"] < report["kv_tokens_if_reserved"]
    assert report["host_ms_per_decode_step"] > 0


def test_throughput_of_a_dataset(run_json, loaded, tmp_path):
    lines = ["a text", json.dumps({"prompt": [5, 6, 7], "output_len": 2}), '{"prompt": "x"}']
    (tmp_path / "prompts").write_text("\n".join(lines))
    words = ["bench", "throughput", "--dataset", tmp_path / "prompts", "--output-len=4"]
    [report] = run_json(*words)
    assert (report["completed"], report["total_output_tokens"]) == (3, 4 + 2 + 4)
    [report] = run_json(*words, "--num-prompts=2")
    assert (report["completed"], report["total_input_tokens"]) == (2, 6 + 3)


def test_latency(run_json, loaded):
    lengths = ["--input-len=9", "--output-len=5"]
    words = ["bench", "latency", "--batch-size=2", "--num-iters=2", *lengths]
    [report] = run_json(*words)
    assert report["decode_throughput"] == pytest.approx(2e3 / report["tpot_ms"])
    assert report["prefill_throughput"] == pytest.approx(2e3 * 9 / report["ttft_ms"])
    assert report["weight_bytes_per_step"] > 0
    assert report["kv_bytes_per_step"] == round(2 * 11.5 * 2 * 2 * 2 * 8 * 4)
    read = report["weight_bytes_per_step"] + report["kv_bytes_per_step"]
    seconds = report["tpot_ms"] / 1e3
    assert report["fraction_of_limit"] == pytest.approx(read / seconds / report["copy_bandwidth"])
    assert report["dtype"] == "float32"


def test_people_read_the_same_figures_above_the_last_line(run, loaded):
    words = ["bench", "latency", "--input-len", "4", "--output-len", "2", "--num-iters", "1"]
    status, out, err = run(*words)
    *rows, last = out.splitlines()
    assert status == 0
    assert [row.split()[0] for row in rows] == list(json.loads(last))
    assert err.startswith("memory: ")


@pytest.mark.parametrize(
    "words",
    [
        ["latency", "--output-len=1"],
        ["latency", "--num-iters=0"],
        ["latency", "--batch-size=0"],
        ["throughput", "--input-len=0"],
        ["throughput", "--num-prompts=0"],
        ["throughput", "--output-len=0"],
    ],
)
def test_sizes_that_measure_nothing_are_wrong_usage(run, loaded, words):
    status, out, err = run("bench", *words)
    assert (status, out) == (2, "")
    assert "must be at least" in err


def test_a_prompt_too_long_measures_nothing(run, loaded):
    status, out, err = run("bench", "throughput", "--input-len=64")
    assert (status, out) == (2, "")
    assert "the prompt has 64 tokens" in err


@pytest.mark.parametrize(
    ("text", "message"), [("", "no prompts"), ("{", "line 1"), ("{}", "line 1")]
)
def test_a_dataset_of_another_form_is_named(run, loaded, tmp_path, text, message):
    (tmp_path / "prompts").write_text(text)
    status, _, err = run("bench", "throughput", "--dataset", tmp_path / "prompts")
    assert status == 2
    assert message in err


def test_startup(run_json, tiny_directory):
    """Two processes: the first compiles, the second finds what was compiled."""
    [report] = run_json("bench", "startup", "--model", tiny_directory, "--load-format=dummy")
    phases = ["imports", "open", "load", "compile", "warm", "first_token", "total"]
    for start in ("cold", "warm"):
        assert list(report[start]) == phases
        seconds = report[start]
        side_by_side = min(seconds["load"], seconds["compile"])
        assert seconds["total"] >= sum(seconds[phase] for phase in phases[:-1]) - side_by_side
