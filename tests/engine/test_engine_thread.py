"""The engine in its own thread, with callers in others."""

import itertools
import threading
from types import SimpleNamespace

import pytest

from jaxinfer.engine import engine
from jaxinfer.outputs import FinishReason
from tests.engine.house import House


class Waiter:
    """Collects events in one thread for those who wait in another."""

    def __init__(self, house):
        self.house = house
        self.changed = threading.Condition()
        house.receive = self.receive

    def receive(self, events):
        with self.changed:
            for event in events:
                self.house.events[event.request_id].append(event)
            self.changed.notify_all()

    def wait_for(self, request_id):
        def is_over():
            ended = [event.index for event in self.house.events[request_id] if event.finish_reason]
            return len(ended) == self.house.requests[request_id].params.n

        with self.changed:
            assert self.changed.wait_for(is_over, timeout=60)


def test_requests_of_many_threads_get_what_each_would_get_alone():
    house = House()
    waiter = Waiter(house)
    house.engine.start()

    def client(number):
        for turn in range(5):
            name = f"{number}.{turn}"
            house.submit(name, [number + 1] * (turn + 3), n=1 + turn % 2, max_tokens=6)
            waiter.wait_for(name)

    clients = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    house.engine.close()
    for name in house.requests:
        house.assert_as_expected(name)
    house.assert_idle()


def test_an_abort_from_another_thread_ends_a_request():
    house = House(max_model_len=4000, decode_steps=(1, 4))
    waiter = Waiter(house)
    house.engine.start()
    house.submit("r", [1], max_tokens=None, ignore_eos=True, n=2)
    assert house.engine.abort("r")
    waiter.wait_for("r")
    reasons = [event.finish_reason for event in house.events["r"] if event.finish_reason]
    assert reasons == [FinishReason.ABORT] * 2
    house.engine.close()
    house.assert_idle()


def test_closing_waits_for_the_thread_and_ends_what_runs():
    house = House()
    house.engine.start()
    house.submit("r", [1], max_tokens=60, ignore_eos=True)
    house.engine.close()
    assert not house.engine._thread.is_alive()
    assert house.events["r"][-1].finish_reason in (FinishReason.ABORT, FinishReason.LENGTH)


def test_closing_from_the_engines_own_thread_ends_it():
    house, closed = House(), threading.Event()

    def close(events):
        house.engine.close()
        closed.set()

    house.receive = close
    house.engine.start()
    house.submit("r", [1], max_tokens=60, ignore_eos=True)
    assert closed.wait(timeout=60)
    house.engine._thread.join(timeout=60)
    assert not house.engine._thread.is_alive()
    assert house.engine.num_unfinished == 0


@pytest.mark.parametrize("error", [ZeroDivisionError, MemoryError, SystemExit])
def test_a_broken_engine_tells_its_requests_and_stops(error, caplog):
    house = House()
    waiter = Waiter(house)

    def broken(*_):
        raise error

    house.scheduler.commit = broken
    house.submit("r", [1])
    house.engine.start()
    waiter.wait_for("r")
    assert isinstance(house.engine.ended.exception(timeout=60), error)
    house.engine._thread.join(timeout=60)
    assert not house.engine._thread.is_alive()
    assert house.events["r"][-1].finish_reason is FinishReason.ERROR
    assert error.__name__ in house.events["r"][-1].error
    assert "the engine failed and is closed" in caplog.text
    house.engine.close()


def test_an_engine_that_is_closed_has_ended_without_a_failure():
    house = House()
    house.engine.start()
    assert not house.engine.ended.cancel()
    house.engine.close()
    assert house.engine.ended.result(timeout=60) is None


def test_books_that_turn_wrong_while_nobody_asks_end_the_engine():
    house = House(clock=itertools.count(step=60.0).__next__)
    waiter = Waiter(house)
    house.engine.start()
    house.submit("r", [1], max_tokens=3, ignore_eos=True)
    waiter.wait_for("r")
    house.scheduler.slots._free.pop()
    house.engine._loop.debug_checks = False
    house.submit("s", [1], max_tokens=3, ignore_eos=True)
    waiter.wait_for("s")
    assert isinstance(house.engine.ended.exception(timeout=60), AssertionError)
    house.engine.close()


@pytest.mark.parametrize(("step_seconds", "steps_aside"), [(1.0, True), (1e-5, False)])
def test_readers_have_pythons_lock_where_a_step_takes_much_longer(
    step_seconds, steps_aside, monkeypatch
):
    slept = []
    monkeypatch.setattr(engine, "time", SimpleNamespace(sleep=slept.append))
    house = House(clock=itertools.count(step=step_seconds).__next__)
    waiter = Waiter(house)
    house.engine.start()
    house.submit("r", [1], max_tokens=8, ignore_eos=True)
    waiter.wait_for("r")
    house.engine.close()
    assert bool(slept) == steps_aside
    house.assert_as_expected("r")
