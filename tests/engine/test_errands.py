"""Functions that run between steps: when, and what becomes of them where they cannot."""

import threading
from concurrent.futures import CancelledError

import pytest

from jaxinfer.engine.errand import WaitFor
from jaxinfer.errors import Asleep, EngineClosed
from jaxinfer.outputs import FinishReason
from tests.engine.house import House, full_group


def house_with(*request_ids: str, **limits) -> House:
    house = House(**limits)
    for request_id in request_ids:
        house.submit(request_id, [1, 2, 3], max_tokens=8, ignore_eos=True)
    return house


def nothing_in_flight(house: House) -> bool:
    return all(entry.result is not None for entry in house.runner.queue if entry.plan)


@pytest.mark.parametrize("lookahead", [False, True])
def test_it_runs_once_what_is_in_flight_was_read_and_changes_nobodys_tokens(lookahead):
    house = house_with("r", "s", lookahead=lookahead)
    seen = []
    for _ in range(3):
        house.step()
        before = house.engine.between_steps(lambda: seen.append(nothing_in_flight(house)))
        house.step()
        assert before.result(timeout=0) is None
    assert seen == [True] * 3
    house.run()
    for request_id in "rs":
        house.assert_as_expected(request_id)
    house.assert_idle()


def test_who_was_begun_ends_first_and_who_was_not_waits_for_it():
    house = house_with("begun")
    house.step()
    future = house.engine.between_steps(lambda: dict(house.events), wait_for=WaitFor.BEGUN)
    house.submit("waits", [3, 2, 1], max_tokens=4, priority=5)
    while not future.done():
        assert not house.events["waits"]
        house.step()
    at_that_time = future.result(timeout=0)
    assert at_that_time["begun"][-1].finish_reason is FinishReason.LENGTH
    house.run()
    for request_id in ("begun", "waits"):
        house.assert_as_expected(request_id)
    house.assert_idle()


def test_samples_and_preempted_ones_of_a_request_that_was_begun_count_as_begun():
    # Two slots for three samples each, and pages for fewer than two of them.
    house = House((full_group(9),), max_num_seqs=2, page_size=2)
    house.submit("a", [1, 2, 3], n=3, max_tokens=9, ignore_eos=True)
    house.step()
    future = house.engine.between_steps(
        lambda: (len(house.events["b"]), house.stats.num_preemptions), wait_for=WaitFor.BEGUN
    )
    house.submit("b", [1, 2, 3], n=3, max_tokens=9, ignore_eos=True, priority=1)
    house.run()
    num_events, num_preemptions = future.result(timeout=0)
    assert num_events == 0
    assert num_preemptions > 0
    for request_id in "ab":
        house.assert_as_expected(request_id)
    house.assert_idle()


def test_all_may_be_waited_for():
    house = house_with("a", "b", max_num_seqs=1)
    house.step()
    unfinished = house.engine.between_steps(
        lambda: house.engine.num_unfinished, wait_for=WaitFor.ALL
    )
    house.run()
    assert unfinished.result(timeout=0) == 0


def test_one_runs_after_the_other_in_their_order_also_where_nothing_else_is_to_do():
    house, order = House(), []
    futures = [
        house.engine.between_steps(lambda n=n: order.append(n), wait_for=wait_for)
        for n, wait_for in enumerate((WaitFor.ALL, WaitFor.FLIGHT, WaitFor.BEGUN))
    ]
    house.engine.step()
    assert [future.done() for future in futures] == [True] * 3
    assert order == [0, 1, 2]


def test_what_it_raises_is_for_who_waits_and_nobody_else():
    house = house_with("r")
    future = house.engine.between_steps(lambda: 1 // 0)
    house.run()
    with pytest.raises(ZeroDivisionError):
        future.result(timeout=0)
    house.assert_as_expected("r")


def test_it_begins_no_more_after_its_time_and_requests_go_on():
    house = house_with("r")
    house.step()
    future = house.engine.between_steps(pytest.fail, wait_for=WaitFor.BEGUN, timeout=5)
    house.submit("s", [1], max_tokens=2)
    house.step()
    assert not future.done()
    house.now = 5.0
    house.step()
    with pytest.raises(TimeoutError, match="requests that were begun did not end in time"):
        future.result(timeout=0)
    house.run()
    for request_id in "rs":
        house.assert_as_expected(request_id)


@pytest.mark.parametrize("wait_for", WaitFor)
def test_one_that_is_late_is_not_begun_even_if_all_it_waits_for_has_ended(wait_for):
    house = house_with("r")
    house.run()
    future = house.engine.between_steps(pytest.fail, wait_for=wait_for, timeout=5)
    house.now = 5.0
    house.step()
    with pytest.raises(TimeoutError, match=f"{wait_for.value} did not end in time"):
        future.result(timeout=0)
    house.assert_idle()


def test_one_that_is_cancelled_never_runs_and_holds_nobody_back():
    house = house_with("r")
    house.step()
    future = house.engine.between_steps(pytest.fail, wait_for=WaitFor.BEGUN)
    house.submit("s", [1], max_tokens=2)
    house.step()
    assert future.cancel()
    house.run()
    for request_id in "rs":
        house.assert_as_expected(request_id)
    with pytest.raises(CancelledError):
        future.result(timeout=0)


def test_an_abort_ends_what_it_waits_for():
    house = house_with("r")
    house.step()
    future = house.engine.between_steps(lambda: "ran", wait_for=WaitFor.BEGUN)
    house.step()
    house.engine.abort("r")
    house.step()
    assert future.result(timeout=0) == "ran"
    house.assert_idle()


def test_a_step_that_fails_meanwhile_is_computed_again_first():
    house = house_with("r")
    house.step()
    future = house.engine.between_steps(lambda: nothing_in_flight(house))
    house.runner.fail_on = "read"
    house.run()
    assert future.result(timeout=0)
    house.assert_as_expected("r")


@pytest.mark.parametrize("wait_for", WaitFor)
def test_closing_fails_those_that_wait(wait_for):
    house = house_with("r")
    house.step()
    waiting = house.engine.between_steps(pytest.fail, wait_for=WaitFor.ALL)
    house.step()
    mailed = house.engine.between_steps(pytest.fail, wait_for=wait_for)
    house.engine.close()
    for future in (waiting, mailed):
        with pytest.raises(EngineClosed):
            future.result(timeout=0)
    with pytest.raises(EngineClosed):
        house.engine.between_steps(pytest.fail)
    house.assert_idle()


def test_an_engine_that_dies_fails_those_that_wait():
    house = house_with("r")
    house.step()
    waiting = house.engine.between_steps(pytest.fail, wait_for=WaitFor.ALL)

    def broken(*_):
        raise ZeroDivisionError

    house.scheduler.plan = broken
    with pytest.raises(ZeroDivisionError):
        house.engine.step()
    with pytest.raises(EngineClosed):
        waiting.result(timeout=0)


def test_the_engines_thread_wakes_up_for_it_and_others_wait_for_it():
    house, threads = House(), []
    house.engine.start()
    for wait_for in WaitFor:
        future = house.engine.between_steps(
            lambda: threads.append(threading.current_thread()), wait_for=wait_for
        )
        future.result(timeout=60)
    assert set(threads) == {house.engine._thread}
    house.engine.close()


@pytest.mark.parametrize("wait_for", WaitFor)
def test_the_engines_thread_runs_it_after_the_last_request_has_ended(wait_for):
    house = House(max_model_len=1000)
    house.engine.start()
    for request_id in ("r", "s"):
        house.submit(request_id, [1, 2, 3], max_tokens=100, ignore_eos=True)
        future = house.engine.between_steps(lambda: "ran", wait_for=wait_for)
        assert future.result(timeout=60) == "ran"
    house.engine.close()


def test_a_sleeping_engine_takes_no_requests_and_ends_those_it_has():
    house = house_with("r")
    house.step()
    house.engine.fall_asleep()
    assert house.engine.is_asleep
    with pytest.raises(Asleep, match="'s': the model sleeps"):
        house.submit("s", [1])
    house.run()
    house.assert_as_expected("r")
    house.engine.wake()
    house.submit("s", [1], max_tokens=3)
    house.run()
    house.assert_as_expected("s")
