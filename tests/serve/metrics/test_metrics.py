"""What Prometheus is told, against what can be worked out by hand."""

import time

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from jaxinfer.engine import Request
from jaxinfer.outputs import FinishReason
from jaxinfer.sampling_params import SamplingParams
from serve.door import Door
from serve.frontend import Ask
from serve.metrics import Metrics
from serve.metrics.histogram import Histogram
from serve.model import ServedModel
from serve.settings import ServeSettings
from tests.engine.house import House
from tests.engine.poison import poison
from tests.serve.house import CANARY, in_loop, served

NAMES = {
    "gauge": {
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "startup_seconds",
        "memory_budget_bytes",
    },
    "counter": {
        "num_preemptions",
        "prefix_cache_queries",
        "prefix_cache_hits",
        "prompt_tokens",
        "generation_tokens",
        "request_success",
        "compiles_after_ready",
    },
    "histogram": {
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "request_time_per_output_token_seconds",
        "e2e_request_latency_seconds",
        "request_queue_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
    },
    "summary": {"step_host_seconds", "step_device_seconds"},
}


def families(metrics: Metrics) -> dict:
    text, content_type = metrics.render()
    assert content_type.startswith("text/plain")
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


def values(metrics: Metrics, prefix: str = "jaxinfer") -> dict:
    """Samples by name and by the labels that not all of them have."""
    return {
        " ".join(
            [sample.name.removeprefix(f"{prefix}:")]
            + [v for k, v in sample.labels.items() if k not in ("model_name", "engine")]
        ): sample.value
        for name, family in families(metrics).items()
        if name.startswith(f"{prefix}:")
        for sample in family.samples
    }


class Watched:
    """An engine whose clock is moved by hand, and the metrics of its requests.

    Each step takes two seconds on the device, and each delivery comes half a second later.
    """

    def __init__(self, **limits):
        self.house = House(lookahead=False, **limits)
        self.model = ServedModel(
            name="tiny",
            engine=self.house.engine,
            tokenizer=None,
            max_model_len=64,
            server_facts={"startup_seconds": {"load": 1.5, "compile": 3.0}},
            memory_budget={"weights": 100, "pages": 28},
            num_compiles=lambda: 2,
        )
        self.metrics = Metrics(self.model)
        self.door = Door(
            self.house.engine, max_pending_tokens=100, clock=lambda: self.house.now + 0.5
        )
        # Events are delivered in this thread, at once.
        self.door._on_events = self.door._deliver
        read = self.house.runner.read

        def slowly(pending):
            self.house.now += 2
            return read(pending)

        self.house.runner.read = slowly

    def submit(self, request_id: str, prompt: list[int], *, deadline=None, **params) -> None:
        request = Request(
            request_id=request_id,
            prompt_token_ids=prompt,
            params=SamplingParams(temperature=0, ignore_eos=True, **params),
            deadline=deadline,
        )
        ask = Ask(prompt=prompt)
        watch = self.metrics.requests.begin(ask, request, arrival=self.house.now - 0.25)
        self.door.submit(request, [watch])


@in_loop
async def test_every_name_is_there_under_both_prefixes_with_its_kind_and_labels():
    told = families(Watched().metrics)
    for prefix, labels in (("jaxinfer", {"model_name"}), ("vllm", {"model_name", "engine"})):
        for kind, names in NAMES.items():
            for name in names:
                family = told.pop(f"{prefix}:{name}")
                assert family.type == kind
                assert family.samples
                assert all(labels <= set(sample.labels) for sample in family.samples)
    assert not told


@in_loop
async def test_a_request_is_told_as_it_can_be_worked_out_by_hand():
    watched = Watched()
    # Engine: arrives at 0; scheduled at 10; tokens at 12, 14, 16. Delivered half a second later.
    watched.submit("r", [1, 2, 3, 4, 5], max_tokens=3)
    watched.house.now = 10.0
    assert values(watched.metrics)["num_requests_running"] == 0
    watched.house.engine.step()
    now = values(watched.metrics)
    assert now["num_requests_running"] == 1
    assert now["num_requests_waiting"] == 0
    assert now["kv_cache_usage_perc"] == pytest.approx(2 / 63)  # pages of 4, of 64 but one
    while watched.house.engine.step():
        pass
    told = values(watched.metrics)
    for name, count, total in (
        ("time_to_first_token_seconds", 1, 12.5 + 0.25),
        ("inter_token_latency_seconds", 2, 4.0),
        ("request_time_per_output_token_seconds", 1, 2.0),
        ("e2e_request_latency_seconds", 1, 16.5 + 0.25),
        ("request_queue_time_seconds", 1, 10.0),
        ("request_prefill_time_seconds", 1, 2.0),
        ("request_decode_time_seconds", 1, 4.0),
    ):
        assert (told[f"{name}_count"], told[f"{name}_sum"]) == (count, total), name
        assert told[f"{name}_bucket +Inf"] == count
    assert told["inter_token_latency_seconds_bucket 1.0"] == 0
    assert told["inter_token_latency_seconds_bucket 2.5"] == 2
    assert told["prompt_tokens_total"] == 5
    assert told["generation_tokens_total"] == 3
    assert told["prefix_cache_queries_total"] == 5
    assert told["prefix_cache_hits_total"] == 0
    assert told["request_success_total length"] == 1
    assert told["step_device_seconds_count"] == told["step_host_seconds_count"] == 3
    assert told["step_device_seconds_sum"] == 6.0
    assert told["step_host_seconds_sum"] == 0.0
    assert told["compiles_after_ready_total"] == 2
    assert told["startup_seconds load"] == 1.5
    assert told["memory_budget_bytes pages"] == 28
    assert values(watched.metrics, "vllm") == told


@in_loop
async def test_several_tokens_of_one_delivery_are_one_interval():
    watched = Watched(decode_steps=(1, 4))
    watched.submit("r", [1, 2], max_tokens=9)
    while watched.house.engine.step():
        pass
    told = values(watched.metrics)  # 1 + 4 + 4 tokens
    assert told["inter_token_latency_seconds_count"] == 2
    assert told["inter_token_latency_seconds_sum"] == 4.0
    assert told["request_time_per_output_token_seconds_sum"] == 4.0 / 8
    assert told["generation_tokens_total"] == 9


@in_loop
async def test_each_request_is_counted_once_by_the_worst_that_became_of_it(caplog):
    watched = Watched()
    engine = watched.house.engine
    watched.submit("aborted", [1, 2], n=3, max_tokens=20)
    engine.step()
    engine.abort("aborted")
    engine.step()
    watched.submit("late", [1, 2], n=2, max_tokens=20, deadline=watched.house.now + 1)
    while engine.step():
        pass
    watched.submit("never scheduled", [1], deadline=watched.house.now)
    engine.step()
    poison(watched.house, "launch")
    watched.submit("bad", [1, 2, 3], n=2, max_tokens=20)
    while engine.step():
        pass
    watched.submit("well", [3], n=2, max_tokens=2)
    while engine.step():
        pass
    told = values(watched.metrics)
    ended = {reason: told[f"request_success_total {reason}"] for reason in FinishReason}
    assert ended == {"stop": 0, "length": 1, "abort": 1, "deadline": 2, "error": 1}
    assert told["e2e_request_latency_seconds_count"] == 5
    assert told["request_queue_time_seconds_count"] == 4
    watched.house.assert_idle()


@in_loop
async def test_what_is_counted_never_decreases():
    watched = Watched(max_num_seqs=2)
    before: dict = {}
    for number in range(8):
        watched.submit(str(number), [1, 2, 3, number], max_tokens=1 + number)
        for _ in range(number):
            watched.house.engine.step()
            now = values(watched.metrics)
            counted = {k: v for k, v in now.items() if k.split()[0].endswith(("_total", "_count"))}
            assert all(counted[name] >= value for name, value in before.items())
            before = counted
    while watched.house.engine.step():
        pass


@in_loop
async def test_a_watch_that_fails_costs_its_request_nothing(caplog):
    class Broken:
        def note(self, event, now):
            raise ZeroDivisionError

    house = House(clock=time.monotonic)
    door = Door(house.engine, max_pending_tokens=64)
    params = SamplingParams(max_tokens=4, ignore_eos=True)
    request = Request(request_id="r", prompt_token_ids=[1], params=params)
    stream = door.submit(request, [Broken()])
    while house.engine.step():
        pass
    [batch] = [batch async for batch in stream]
    assert len(batch[0].token_ids) == 4
    assert caplog.text.count("request 'r' is watched no more") == 1


@in_loop
async def test_a_server_counts_what_its_clients_ask_for():
    async with served(ServeSettings(grpc_port=0, http_port=0)) as tested:
        for _ in range(3):
            await tested.tokens(CANARY)
        told = values(tested.server.metrics)
        async with httpx.AsyncClient() as client:
            page = await client.get(f"http://127.0.0.1:{tested.server.http_port}/metrics")
        names = {family.name for family in text_string_to_metric_families(page.text)}
        assert names == set(families(tested.server.metrics))
    assert told["request_success_total length"] == 3
    assert told["prompt_tokens_total"] == 15
    assert told["generation_tokens_total"] == 36
    assert told["time_to_first_token_seconds_count"] == 3
    assert told["inter_token_latency_seconds_count"] == 33


def test_a_bucket_holds_its_upper_bound():
    histogram = Histogram((1, 2.5))
    for value in (0.5, 1, 1.5, 2.5, 9):
        histogram.observe(value)
    assert histogram.buckets() == [("1.0", 2), ("2.5", 4), ("+Inf", 5)]
    assert histogram.sum == 14.5
