"""Background: two pieces of work, of which the first to fail stops the other."""

import contextlib
import gc
import threading
import weakref

import pytest

from jaxinfer.checkpoint.load import Progress, no_progress
from jaxinfer.llm.background import Background


class Failed(Exception):
    """What a test raises."""


def test_its_result_and_what_both_reported_come_back() -> None:
    seen: list[tuple[str, int, int]] = []

    def work(report: Progress) -> str:
        report(1, 2)
        return threading.current_thread().name

    with Background(work, lambda *args: seen.append(("work", *args))) as background:
        name = background.result()
        background.watched(lambda *args: seen.append(("block", *args)))(3, 4)
    assert name != threading.current_thread().name
    assert seen == [("work", 1, 2), ("block", 3, 4)]


def test_its_failure_stops_the_block_at_its_next_report() -> None:
    def work(report: Progress) -> None:
        raise Failed

    def block() -> None:
        with Background(work, no_progress) as background:
            report = background.watched(no_progress)
            while True:
                report(0, 1)

    with pytest.raises(Failed):
        block()


def test_a_failure_of_the_block_stops_the_work_at_its_next_report() -> None:
    under_way, ended = threading.Event(), threading.Event()

    def work(report: Progress) -> None:
        under_way.set()
        try:
            while True:
                report(0, 1)
        finally:
            ended.set()

    def block() -> None:
        with Background(work, no_progress):
            assert under_way.wait(10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        block()
    assert ended.is_set()


def test_a_failure_while_the_result_is_awaited_is_raised() -> None:
    def work(report: Progress) -> None:
        raise Failed

    with pytest.raises(Failed), Background(work, no_progress) as background:
        background.result()


def test_a_failure_of_both_tells_of_both() -> None:
    def work(report: Progress) -> None:
        raise Failed("the weights")

    def block() -> None:
        with Background(work, no_progress):
            raise KeyError("the programs")

    with pytest.raises(KeyError, match="the programs") as raised:
        block()
    assert raised.value.__notes__ == ["meanwhile, in the background: Failed: the weights"]


def test_what_the_work_held_is_free_once_its_failure_was_handled() -> None:
    class Weights:
        pass

    held: list[weakref.ref] = []

    def work(report: Progress) -> None:
        weights = Weights()
        held.append(weakref.ref(weights))
        raise Failed

    def block() -> None:
        with Background(work, no_progress) as background:
            background.result()

    gc.disable()
    try:
        with contextlib.suppress(Failed):
            block()
        assert held[0]() is None
    finally:
        gc.enable()
