"""``bench serve``: the command, on a server whose model can be worked out by hand."""

import asyncio
import json

import pytest

from serve.settings import ServeSettings
from tests.serve.house import in_loop, served

SMALL = ("--random-input-len=8", "--random-output-len=5", "--num-prompts=6")


def benched(run, *words, settings=None):
    """What the command says of such a server."""
    told = []

    @in_loop
    async def bench():
        async with served(settings) as tested:
            server = f"--server=127.0.0.1:{tested.server.grpc_port}"
            told.append(await asyncio.to_thread(run, "bench", "serve", server, *words))

    bench()
    return told[0]


def test_the_last_line_is_the_result_by_vllms_names(run, tmp_path):
    file = tmp_path / "result.json"
    words = ("--max-concurrency=2", "--goodput", "ttft:1e9", "--percentiles=50,99")
    status, out, err = benched(run, *SMALL, *words, f"--result-file={file}")
    assert status == 0, err
    document = json.loads(out.splitlines()[-1])
    assert json.loads(file.read_text()) == document
    assert (document["completed"], document["failed"]) == (6, 0)
    assert (document["total_input_tokens"], document["total_output_tokens"]) == (48, 30)
    assert document["request_goodput"] == document["request_throughput"]
    assert document["max_concurrent_requests"] <= 2
    assert (document["model"], document["request_rate"]) == ("tiny", "inf")
    for metric in ("ttft", "tpot", "itl", "e2el"):
        for statistic in ("mean", "median", "std", "p50", "p99"):
            assert document[f"{statistic}_{metric}_ms"] >= 0


def test_a_sweep_is_a_run_a_rate_and_a_picture(run, tmp_path):
    picture = tmp_path / "curve.png"
    status, out, err = benched(run, *SMALL, "--sweep=200,inf", f"--plot={picture}", "--json")
    assert status == 0, err
    [line] = out.splitlines()
    first, second = json.loads(line)["sweep"]
    assert (first["request_rate"], second["request_rate"]) == (200, "inf")
    assert first["max_send_lag_ms"] >= 0
    assert first["request_goodput"] is None  # nobody said what is good
    # Prompts of their own, which no run before it left in the cache.
    assert second["total_cached_tokens"] == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "num_requests"),
    [
        (["--dataset=sharegpt-like", "--num-prompts=2"], 2),
        (["--dataset=prefix-repetition", "--num-prompts=4"], 4),
        (
            [
                "--dataset=multi-turn",
                "--num-prompts=2",
                "--multi-turn-num-turns=3",
                "--multi-turn-system-len=64",
                "--multi-turn-output-len=4",
            ],
            6,
        ),
        (
            [
                "--num-prompts=3",
                "--ramp-up-strategy=linear",
                "--ramp-up-start-rps=100",
                "--ramp-up-end-rps=200",
            ],
            3,
        ),
    ],
)
def test_each_load_is_served(run, words, num_requests):
    status, out, err = benched(run, *words, "--json")
    assert status == 0, err
    document = json.loads(out)
    assert (document["completed"], document["failed"]) == (num_requests, 0)
    if "--dataset=multi-turn" in words:
        assert document["total_cached_tokens"] > 4 * 64


def test_a_server_that_refuses_all_is_a_failure_with_its_words(run):
    settings = ServeSettings(grpc_port=0, tokens=("xyzzy",))
    status, _, err = benched(run, *SMALL, settings=settings)
    assert status == 1
    assert "no token" in err
    status, out, _ = benched(run, *SMALL, "--timeout=0.001", "--json")
    assert status == 1
    assert all(error.startswith("DeadlineExceeded") for error in json.loads(out)["errors"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--plot=x.png"], "--sweep"),
        (["--backend=openai", "--endpoint=/v1/chat/completions"], "takes texts"),
        (["--backend=openai", "--endpoint=/v2"], "/v2"),
        (["--num-prompts=0"], "at least 1"),
        (["--max-concurrency=0"], "at least 1"),
        (["--dataset=sharegpt"], "--dataset-path"),
        (["--random-input-len=4000"], "context"),
        (["--request-rate=0"], "request rate"),
        (["--ramp-up-strategy=linear"], "ramp"),
        (["--dataset=file", "--dataset-path=absent"], "absent"),
    ],
)
def test_what_cannot_be_measured_is_refused(run, words, said):
    status, out, err = benched(run, *SMALL, *words)
    assert (status, out) == (1 if "absent" in words[-1] else 2, "")
    assert said in err
