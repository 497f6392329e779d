"""The host's time is what is left of a step without the wait for the device."""

import numpy as np
import pytest

from jaxinfer.bench import host_time
from jaxinfer.engine.step import Row, StepPlan

DECODE = StepPlan(rows=(Row(slot=0, generation=0, start=1),))
PREFILL = StepPlan(rows=(Row(slot=0, generation=0, start=0, tokens=np.zeros(2, np.int32)),))


class FakeRunner:
    """Steps that take one second on the device."""

    name = "fake"

    def __init__(self, clock):
        self._clock = clock

    def launch(self, plan):
        return object()

    def read(self, pending):
        self._clock.now += 1.0


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(host_time, "time", clock)
    return clock


def test_waits_and_steps_with_prompts_do_not_count(clock):
    timer = host_time.HostTimer(FakeRunner(clock))
    for plan, host_seconds in ((DECODE, 5.0), (DECODE, 0.25), (PREFILL, 7.0), (DECODE, 0.75)):
        pending = timer.launch(plan)
        clock.now += host_seconds
        timer.read(pending)
    assert timer.num_steps == 2  # the first has no read before it
    assert timer.milliseconds_per_step == pytest.approx(500)
    assert timer.name == "fake"


def test_no_step_has_no_time(clock):
    assert host_time.HostTimer(FakeRunner(clock)).milliseconds_per_step is None


def test_a_step_launched_before_the_timer_came_does_not_count(clock):
    timer = host_time.HostTimer(FakeRunner(clock))
    timer.read(object())
    assert timer.num_steps == 0
