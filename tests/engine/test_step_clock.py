"""What steps take, and what is refused because they take so much."""

import pytest

from jaxinfer.engine.stats import EngineStats
from jaxinfer.engine.step_clock import StepClock
from jaxinfer.errors import DeadlinePassed
from jaxinfer.outputs import FinishReason
from tests.engine.guides import GUIDES
from tests.engine.house import House

AHEAD = pytest.mark.parametrize("lookahead", [True, False], ids=["ahead", "plain"])


class Watch:
    """A step clock, and the hand that moves it."""

    def __init__(self):
        self.now = 0.0
        self.clock = StepClock(lambda: self.now, EngineStats())

    def launch(self, at: float) -> None:
        self.now = at
        self.clock.launched()

    def land(self, at: float, num_steps: int = 1) -> None:
        with self.clock.landing(num_steps):
            self.now = at


def test_before_a_step_has_landed_nothing_is_known():
    watch = Watch()
    assert watch.clock.shortest_step is None
    watch.launch(1.0)
    assert watch.clock.shortest_step is None
    with pytest.raises(RuntimeError), watch.clock.landing(1):
        raise RuntimeError
    assert watch.clock.shortest_step is None


def test_a_step_takes_from_its_launch_or_the_landing_before_to_its_own_landing():
    watch = Watch()
    watch.launch(10.0)
    watch.launch(11.0)
    watch.land(18.0)
    assert watch.clock.shortest_step == 8.0
    watch.launch(19.0)
    watch.land(23.0)  # launched at 11, begun at 18
    assert watch.clock.shortest_step == 5.0
    watch.land(40.0)
    assert watch.clock.shortest_step == 5.0
    watch.launch(100.0)
    watch.land(104.0)
    assert watch.clock.shortest_step == 4.0


def test_a_step_that_began_nobody_knows_when_is_not_the_shortest():
    watch = Watch()
    for at in (0.0, 1.0, 2.0):
        watch.launch(at)
    watch.land(8.0)
    watch.now = 20.0  # the host is busy, and the second has ended long since
    watch.land(20.1)
    watch.land(23.0)  # begun before 20.1
    assert watch.clock.shortest_step == 8.0
    watch.launch(23.0)
    watch.land(28.0)  # that one was awaited
    assert watch.clock.shortest_step == 5.0


def test_steps_of_one_call_have_each_their_share():
    watch = Watch()
    watch.launch(0.0)
    watch.land(8.0, num_steps=4)
    assert watch.clock.shortest_step == 2.0


def slow_house(**settings) -> House:
    """Each step takes 2 s, and one was taken."""
    house = House(**settings)
    read = house.runner.read

    def slowly(pending):
        house.now += 2
        return read(pending)

    house.runner.read = slowly
    house.submit("first", [1, 2], max_tokens=1, ignore_eos=True)
    house.run()
    return house


@AHEAD
def test_who_has_less_time_than_any_step_took_is_refused_beside_others(lookahead):
    house = slow_house(lookahead=lookahead)
    house.submit("other", [3], max_tokens=9, ignore_eos=True)
    house.step()
    events = dict(house.events)
    house.engine._constraints.of = None  # nothing is compiled for it
    with pytest.raises(DeadlinePassed, match=r"^1500\.0 ms are left .* 2000\.0 ms; .* time"):
        house.submit("late", [4], deadline=house.now + 1.5, n=2, structured_outputs=GUIDES["any"])
    with pytest.raises(DeadlinePassed, match=r"^0\.0 ms"):
        house.submit("late", [4], deadline=house.now - 1)
    del house.engine._constraints.of
    assert house.events == events
    assert house.engine.num_unfinished == 1
    house.submit("late", [4], max_tokens=3, ignore_eos=True)  # its name is free
    house.run()
    house.assert_as_expected("other")
    house.assert_as_expected("late")
    house.assert_idle()


@AHEAD
def test_who_has_the_time_of_the_shortest_step_is_taken(lookahead):
    house = slow_house(lookahead=lookahead)
    house.submit("other", [3], max_tokens=9, ignore_eos=True)
    house.submit("just", [4], max_tokens=3, ignore_eos=True, deadline=house.now + 2)
    house.run()
    assert house.output("just").finish_reason is FinishReason.DEADLINE
    assert house.output("just").tokens == house.expected("just").tokens[:1]
    house.assert_idle()


@AHEAD
def test_who_is_queued_behind_others_has_to_have_the_time_of_their_steps_too(lookahead):
    house = slow_house(lookahead=lookahead, max_num_seqs=2)
    for name in "ab":  # in slots
        house.submit(name, [3], max_tokens=9, ignore_eos=True)
    house.step()
    house.submit("sooner", [4], max_tokens=2, deadline=house.now + 4.5)  # may be gone by then
    for name in "cdef":
        house.submit(name, [4], max_tokens=2, ignore_eos=True)
    house.submit("low", [4], max_tokens=2, ignore_eos=True, priority=-1)
    why = r"^5500\.0 ms are left .* with 4 requests queued before it there are 3 to wait for"
    with pytest.raises(DeadlinePassed, match=why):
        house.submit("late", [4], max_tokens=2, deadline=house.now + 5.5)
    house.submit("just", [4], max_tokens=2, ignore_eos=True, deadline=house.now + 6)
    house.submit("high", [4], max_tokens=1, priority=1, deadline=house.now + 5.5)
    house.run()
    for name in (*"abcdef", "low", "high"):
        house.assert_as_expected(name)
    for name in ("sooner", "just"):
        assert house.output(name).finish_reason is FinishReason.DEADLINE
    house.assert_idle()


def test_an_engine_without_requests_takes_everybody_and_so_learns_of_shorter_steps():
    house = slow_house()
    house.submit("late", [4], deadline=house.now + 1, max_tokens=9)
    house.run()
    assert house.output("late").finish_reason is FinishReason.DEADLINE
    del house.runner.read  # from now on steps take no time
    house.submit("alone", [4], deadline=house.now + 1, max_tokens=3, ignore_eos=True)
    house.run()
    house.submit("other", [3], max_tokens=9, ignore_eos=True)
    house.submit("beside", [4], deadline=house.now + 1, max_tokens=3, ignore_eos=True)
    house.run()
    for name in ("alone", "other", "beside"):
        house.assert_as_expected(name)
    house.assert_idle()


def test_an_engine_that_has_seen_no_step_takes_everybody():
    house = House()
    house.submit("other", [3], max_tokens=9, ignore_eos=True)
    house.submit("late", [4], deadline=house.now + 1e-9)
    house.now += 1
    house.run()
    assert house.output("late").finish_reason is FinishReason.DEADLINE
    house.assert_as_expected("other")
    house.assert_idle()
