"""A request that the device cannot bear fails alone, whoever was in a slot beside it."""

import pytest

from jaxinfer.engine.failure_record import PROOF_TOKENS
from jaxinfer.engine.step_loop import MAX_FAILURES
from jaxinfer.errors import StepFailed
from jaxinfer.outputs import FinishReason
from tests.engine.house import House, full_group, window_group
from tests.engine.poison import Poison, poison

PROMPT = [1, 2, 3, 4, 5]
AHEAD = pytest.mark.parametrize("lookahead", [True, False], ids=["ahead", "plain"])
WHERE = pytest.mark.parametrize("where", ["launch", "read"])

#: What of a sequence, with so many tokens of output in its slot, the device cannot bear.
POISONS: dict[str, Poison] = {
    "its prompt": lambda sequence, num_decoded: True,
    "its decode steps": lambda sequence, num_decoded: num_decoded > 0,
    "its third decode step in a slot": lambda sequence, num_decoded: num_decoded >= 3,
    "its second sample": lambda sequence, num_decoded: sequence.index == 1,
    "its twelfth token": lambda sequence, num_decoded: len(sequence.tokens) >= len(PROMPT) + 11,
}


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
def test_eight_of_them_end_and_nobody_else_does(where, lookahead):
    house = House(lookahead=lookahead, max_num_seqs=8)
    poison(house, where, POISONS["its prompt"])
    for number in range(8):
        house.submit(f"bad{number}", PROMPT, max_tokens=9)
        house.submit(f"good{number}", PROMPT, max_tokens=9)
    house.run()
    for number in range(8):
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
def test_one_after_the_other_they_end_and_the_engine_does_not(lookahead):
    house = House(lookahead=lookahead)
    poison(house, "launch", POISONS["its prompt"])
    for number in range(9):
        house.submit(f"bad{number}", PROMPT, max_tokens=9)
        house.run()
        assert ends(house, f"bad{number}") == {FinishReason.ERROR}
    house.submit("good", PROMPT, max_tokens=9)
    house.run()
    house.assert_as_expected("good")
    house.assert_idle()


@AHEAD
def test_what_the_device_bears_for_some_tokens_at_a_time_is_served(lookahead):
    house = House(lookahead=lookahead)
    poison(house, "launch", lambda sequence, num_decoded: num_decoded > PROOF_TOKENS)
    for name in ("bad", "good"):
        house.submit(name, PROMPT, max_tokens=40, ignore_eos=True)
    house.run()
    for name in ("bad", "good"):
        house.assert_as_expected(name)
    assert house.stats.num_failed_steps > 2
    house.assert_idle()


@AHEAD
def test_neither_failures_that_are_long_past_nor_those_of_another_are_held_against_one(lookahead):
    house = House(lookahead=lookahead, max_num_seqs=2)
    house.submit("alone", PROMPT, max_tokens=50, ignore_eos=True)
    for _ in range(6):
        for _ in range(3 + PROOF_TOKENS):
            house.step()
        house.runner.fail_on = "read"
        house.step()
    assert house.stats.num_failed_steps == 6
    poison(house, "launch", POISONS["its prompt"])
    house.submit("bad", PROMPT, max_tokens=9)
    while house.step() and not house.events["bad"]:
        pass
    house.runner.fail_on = "read"
    house.run()
    assert ends(house, "bad") == {FinishReason.ERROR}
    house.assert_as_expected("alone")
    house.assert_idle()


@AHEAD
def test_those_that_are_gone_before_they_are_found_out_do_not_end_the_engine(lookahead):
    house = House(lookahead=lookahead)
    poison(house, "launch", POISONS["its prompt"])
    house.submit("good", PROMPT, max_tokens=9, ignore_eos=True, priority=-1)
    for number in range(20):
        house.submit(f"bad{number}", PROMPT, max_tokens=9)
        house.step()
        house.engine.abort(f"bad{number}")
        house.step()
        assert ends(house, f"bad{number}") == {FinishReason.ABORT}
    house.run()
    house.assert_as_expected("good")
    house.assert_idle()


@AHEAD
def test_a_device_that_fails_once_more_when_it_is_asked_for_proof_is_asked_again(lookahead):
    house = House(lookahead=lookahead)
    poison(house, "launch", POISONS["its prompt"])
    reset, proofs = house.runner.reset, []

    def reset_and_fail_on_the_proof():
        reset()
        if house.scheduler.waiting[0].failures.is_guilty:
            proofs.append(house.stats.num_failed_steps)
            if len(proofs) == 1:
                house.runner.fail_on = "read"

    house.runner.reset = reset_and_fail_on_the_proof
    for name in ("good", "bad"):
        house.submit(name, PROMPT, max_tokens=9)
    house.run()
    assert proofs == [4, 5]
    assert ends(house, "bad") == {FinishReason.ERROR}
    house.assert_as_expected("good")
    house.assert_idle()


@AHEAD
def test_a_device_that_can_do_nothing_but_prove_itself_ends_the_engine(lookahead):
    house = House(lookahead=lookahead, max_num_seqs=2)
    poison(house, "launch", POISONS["its prompt"])

    def keep_asking():
        for number in range(MAX_FAILURES):
            house.submit(f"bad{number}", PROMPT, max_tokens=9)
            house.run()

    with pytest.raises(StepFailed, match="cannot bear"):
        keep_asking()
    assert house.stats.num_failed_steps == MAX_FAILURES - 1
    assert not house.engine.step()


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
    assert [s.family.request.request_id for s in house.scheduler.running] == ["b"]
    house.engine.abort("b")
    house.step()
    assert [s.family.request.request_id for s in house.scheduler.running] == ["a"]
    house.run()
    for name in "ac":
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
    assert not sequence.failures.is_guilty
    house.run()
    house.assert_as_expected("next")
    house.assert_idle()
