"""Streams beside ``LLM``: whose turn it is, and what the figures say."""

from concurrent.futures import Executor, Future

import pytest

from jaxinfer.errors import JaxInferError
from serve.load import streaming
from serve.load.sender import send
from serve.load.streaming import Round, measure_streaming


class Sides(Executor):
    """Both sides: each load has a throughput on either; in ``turns`` who was asked for which."""

    def __init__(self, rounds, failed=0):
        self.rounds, self.failed, self.turns = rounds, failed, []

    def offline(self, llm, workload):
        self.turns.append((llm, workload))
        return {"failed": 0, "output_throughput": self.rounds[workload].offline}

    def submit(self, function, /, target, workload, max_concurrency):
        assert (function, max_concurrency) == (send, 3)
        self.turns.append((target, workload))
        done = Future()
        throughput = self.rounds[workload].streamed
        errors = {"errors": {"Unavailable: gone": self.failed}} if self.failed else {}
        done.set_result({"failed": self.failed, "output_throughput": throughput} | errors)
        return done


def measured(monkeypatch, sides, **others):
    monkeypatch.setattr(streaming, "measure_throughput", sides.offline)
    workloads = list(range(len(sides.rounds)))
    return measure_streaming("llm", "there", workloads, sides, max_concurrency=3, **others)


def test_the_ratio_is_that_of_medians_and_lies_between_those_of_rounds_drawn_again(monkeypatch):
    pairs = [(100, 90), (50, 48), (102, 99), (98, 30), (104, 100)]
    rounds = [Round(offline=offline, streamed=streamed) for offline, streamed in pairs]
    told = []
    report = measured(monkeypatch, Sides(rounds), on_round=told.append)
    assert told == rounds
    assert report["num_rounds"] == 5
    assert report["llm_output_throughput"] == 100  # neither 50 nor 30 moves a median
    assert report["grpc_output_throughput"] == 90
    assert report["ratio"] == 0.9
    assert 30 / 104 <= report["ratio_low"] < 0.9 < report["ratio_high"] <= 100 / 50
    assert report["llm_output_throughputs"] == [100, 50, 102, 98, 104]
    assert report["grpc_output_throughputs"] == [90, 48, 99, 30, 100]


def test_rounds_that_are_alike_leave_no_doubt(monkeypatch):
    report = measured(monkeypatch, Sides([Round(offline=4, streamed=3)] * 3))
    assert (report["ratio"], report["ratio_low"], report["ratio_high"]) == (0.75, 0.75, 0.75)


def test_the_sides_take_turns_at_being_first(monkeypatch):
    sides = Sides([Round(offline=1, streamed=1)] * 3)
    measured(monkeypatch, sides)
    first, second, third = [("llm", 0), ("there", 0)], [("there", 1), ("llm", 1)], ("llm", 2)
    assert sides.turns == [*first, *second, third, ("there", 2)]


def test_a_load_of_which_a_part_failed_is_no_measurement(monkeypatch):
    sides = Sides([Round(offline=1, streamed=1)], failed=2)
    with pytest.raises(JaxInferError, match=r"2 requests failed: Unavailable: gone"):
        measured(monkeypatch, sides)
