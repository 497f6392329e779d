"""Streams beside ``LLM``: whose turn it is, what the client sends, and what the figures say."""

import asyncio
from concurrent.futures import Executor, Future

import pytest

from jaxinfer.bench.workload import Workload
from jaxinfer.errors import JaxInferError
from serve.load import streaming
from serve.load.sender import send
from serve.load.streaming import Round, measure_streaming
from tests.serve.house import CANARY, in_loop, served


class Sides(Executor):
    """Both sides: each load has a throughput on either; in ``turns`` who was asked for which."""

    def __init__(self, rounds, failed=0):
        self.rounds, self.failed, self.turns = rounds, failed, []

    def generate(self, prompts, params, *, use_tqdm):
        assert (len(prompts), params.max_tokens, use_tqdm) == (1, 1, False)
        self.turns.append(("opening", prompts[0]))

    def offline(self, llm, workload):
        assert llm is self
        [number] = workload.prompts
        self.turns.append(("LLM", number))
        return {"failed": 0, "output_throughput": self.rounds[number].offline}

    def submit(self, function, /, target, workload, max_concurrency):
        assert (function, target, max_concurrency) == (send, "there", 3)
        [number] = workload.prompts
        self.turns.append(("streams", number))
        errors = {"errors": {"Unavailable: gone": self.failed}} if self.failed else {}
        throughput = self.rounds[number].streamed
        done = Future()
        done.set_result({"failed": self.failed, "output_throughput": throughput} | errors)
        return done


def measured(monkeypatch, sides, **others):
    monkeypatch.setattr(streaming, "measure_throughput", sides.offline)
    loads = [Workload(prompts=[number], output_lens=[1]) for number in range(len(sides.rounds))]
    return measure_streaming(sides, "there", loads, sides, max_concurrency=3, **others)


def test_the_figures_are_those_of_the_rounds(monkeypatch):
    pairs = [(100, 90), (50, 48), (102, 102)]
    rounds = [Round(offline=offline, streamed=streamed) for offline, streamed in pairs]
    told = []
    report = measured(monkeypatch, Sides(rounds), on_round=told.append)
    assert told == rounds
    assert report["rounds"] == 3
    assert (report["median_llm_throughput"], report["median_grpc_throughput"]) == (100, 90)
    assert report["ratio"] == 0.9
    assert report["mean_ratio"] == pytest.approx((0.9 + 0.96 + 1) / 3)
    spread = sum((ratio - 2.86 / 3) ** 2 for ratio in (0.9, 0.96, 1))
    assert report["standard_error"] == pytest.approx((spread / 2 / 3) ** 0.5)
    assert report["llm_output_throughputs"] == [100, 50, 102]
    assert report["grpc_output_throughputs"] == [90, 48, 102]


def test_one_round_says_nothing_of_its_error(monkeypatch):
    report = measured(monkeypatch, Sides([Round(offline=4, streamed=3)]))
    assert (report["ratio"], report["mean_ratio"], report["standard_error"]) == (0.75, 0.75, None)


def test_the_sides_take_turns_at_being_first(monkeypatch):
    sides = Sides([Round(offline=1, streamed=1)] * 3)
    measured(monkeypatch, sides)
    llm, streams = ("opening", "LLM"), ("streams",)
    turns = [(*llm, *streams), (*streams, *llm), (*llm, *streams)]
    assert sides.turns == [(who, number) for number, each in enumerate(turns) for who in each]


def test_a_load_of_which_a_part_failed_is_no_measurement(monkeypatch):
    sides = Sides([Round(offline=1, streamed=1)], failed=2)
    with pytest.raises(JaxInferError, match=r"2 requests failed: Unavailable: gone"):
        measured(monkeypatch, sides)


@in_loop
async def test_the_client_sends_the_whole_load_after_one_request_that_does_not_count():
    prompt = list(CANARY.token_ids.ids)
    load = Workload(
        prompts=[{"prompt_token_ids": [*prompt, extra]} for extra in range(5)],
        output_lens=[3, 4, 5, 6, 7],
    )
    async with served() as tested:
        target = f"127.0.0.1:{tested.server.grpc_port}"
        figures = await asyncio.to_thread(send, target, load, 2)
        generated = tested.engine.stats.num_generated_tokens
    assert (figures["completed"], figures["failed"]) == (5, 0)
    assert (figures["total_input_tokens"], figures["total_output_tokens"]) == (30, 25)
    assert figures["max_concurrent_requests"] == 2
    assert generated == 25 + 1
