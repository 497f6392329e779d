"""A request that the device cannot bear fails alone, whoever was in a slot beside it."""

from collections.abc import Callable

import pytest

from jaxinfer.engine.sequence import Sequence
from jaxinfer.outputs import FinishReason
from tests.engine.house import House, full_group, window_group

PROMPT = [1, 2, 3, 4, 5]
AHEAD = pytest.mark.parametrize("lookahead", [True, False], ids=["ahead", "plain"])
WHERE = pytest.mark.parametrize("where", ["launch", "read"])

#: What of a sequence, with so many tokens of output in its slot, the device cannot bear.
POISONS: dict[str, Callable[[Sequence, int], bool]] = {
    "its prompt": lambda sequence, num_decoded: True,
    "its decode steps": lambda sequence, num_decoded: num_decoded > 0,
    "its fifth decode step in a slot": lambda sequence, num_decoded: num_decoded >= 5,
    "its second sample": lambda sequence, num_decoded: sequence.index == 1,
    "its twelfth token": lambda sequence, num_decoded: len(sequence.tokens) >= len(PROMPT) + 11,
}


def poison(house: House, where: str, is_poison: Callable[[Sequence, int], bool]) -> None:
    """The device fails on rows of such sequences of requests whose names begin with "bad"."""
    call, poisoned = getattr(house.runner, where), set()
    launch = house.runner.launch

    def note(plan):
        pending = launch(plan)
        for row in plan.rows:
            sequence = house.scheduler.slots.owner(row.slot, row.generation)
            name = sequence.family.request.request_id
            if name.startswith("bad") and is_poison(sequence, row.start - sequence.prefill_len + 1):
                if where == "launch":
                    raise FloatingPointError(f"cannot bear {name}")
                poisoned.add(id(pending))
        return pending

    def read(pending):
        if id(pending) in poisoned:
            poisoned.clear()
            raise FloatingPointError("cannot bear it")
        return call(pending)

    house.runner.launch = note
    if where == "read":
        house.runner.read = read


def ends(house: House, name: str) -> set[FinishReason | None]:
    outputs = range(house.requests[name].params.n)
    return {house.output(name, index).finish_reason for index in outputs}


@AHEAD
@WHERE
@pytest.mark.parametrize("what", POISONS)
@pytest.mark.parametrize("steps", [(1,), (1, 4)], ids=["one", "four"])
def test_it_ends_and_nobody_else_does(where, lookahead, what, steps):
    groups = (full_group(), window_group(6))
    house = House(groups, lookahead=lookahead, max_num_seqs=4, decode_steps=steps)
    house.submit("before", PROMPT, max_tokens=20, ignore_eos=True, logprobs=1)
    house.submit("low", PROMPT, max_tokens=9, ignore_eos=True, priority=-1)
    house.step()
    poison(house, where, POISONS[what])
    house.submit("bad", [*PROMPT, 6], n=2, max_tokens=50, ignore_eos=True)
    house.submit("after", [1, 2, 3], n=3, max_tokens=20, bad_words=("ab", "c"))
    house.submit("high", PROMPT, max_tokens=9, ignore_eos=True, priority=1, prompt_logprobs=0)
    house.run()
    assert FinishReason.ERROR in ends(house, "bad")
    for index in range(2):
        got, whole = house.output("bad", index), house.expected("bad", index)
        assert got.tokens == whole.tokens[: len(got.tokens)]
    assert "cannot bear" in house.events["bad"][-1].error
    for name in ("before", "low", "after", "high"):
        house.assert_as_expected(name)
    house.assert_idle()


@AHEAD
@WHERE
def test_four_of_them_end_and_nobody_else_does(where, lookahead):
    house = House(lookahead=lookahead, max_num_seqs=8)
    poison(house, where, POISONS["its prompt"])
    for number in range(4):
        house.submit(f"bad{number}", PROMPT, max_tokens=9)
        house.submit(f"good{number}", PROMPT, max_tokens=9)
    house.run()
    for number in range(4):
        assert ends(house, f"bad{number}") == {FinishReason.ERROR}
        house.assert_as_expected(f"good{number}")
    house.assert_idle()


@AHEAD
def test_alone_it_ends_at_its_second_failure(lookahead):
    house = House(lookahead=lookahead)
    poison(house, "launch", POISONS["its prompt"])
    house.submit("bad", PROMPT, max_tokens=9)
    house.run()
    assert ends(house, "bad") == {FinishReason.ERROR}
    assert house.stats.num_failed_steps == 2


@AHEAD
def test_failures_that_nobody_is_the_reason_of_end_nobody(lookahead):
    house = House(lookahead=lookahead, max_num_seqs=4)
    for name in "abc":
        house.submit(name, PROMPT, max_tokens=30, ignore_eos=True)
    house.submit("n", PROMPT, n=3, max_tokens=30, ignore_eos=True)
    num_failures = 0
    while house.step():
        if len(house.scheduler.running) > 1 and house.stats.num_steps % 4 == 0:
            house.runner.fail_on = "read"
            num_failures += 1
            assert num_failures < 500, "the engine does not come to an end"
    for name in "abcn":
        house.assert_as_expected(name)
    assert house.stats.num_failed_steps > 10
    house.assert_idle()


@AHEAD
def test_a_suspect_that_is_aborted_makes_room_for_the_others(lookahead):
    house = House(lookahead=lookahead)
    for name in "ab":
        house.submit(name, PROMPT, max_tokens=9, ignore_eos=True)
    for _ in range(2):
        house.step()
        house.runner.fail_on = "launch"
        house.step()
    house.submit("c", PROMPT, max_tokens=9, ignore_eos=True, priority=9)
    house.step()
    assert [s.family.request.request_id for s in house.scheduler.running] == ["a"]
    house.engine.abort("a")
    house.step()
    assert [s.family.request.request_id for s in house.scheduler.running] == ["b"]
    house.run()
    for name in "bc":
        house.assert_as_expected(name)
    house.assert_idle()


def test_whoever_failed_is_not_held_against_who_came_into_its_place():
    """With one step ahead, rows of the request before are still in flight."""
    house = House(max_num_seqs=1)
    house.submit("gone", PROMPT, max_tokens=30, ignore_eos=True)
    house.submit("next", PROMPT, max_tokens=9, ignore_eos=True)
    for _ in range(3):
        house.step()
    house.engine.abort("gone")
    house.runner.fail_on = "read"
    house.step()
    [sequence] = house.scheduler.waiting
    assert sequence.num_failures == 1  # it was launched, too
    house.run()
    house.assert_as_expected("next")
    house.assert_idle()
