"""Every output is what it should be, whatever goes wrong on the way to it."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxinfer.engine.faults import FaultyRunner
from jaxinfer.engine.pages import PagePool
from jaxinfer.errors import StepFailed
from jaxinfer.outputs import FinishReason
from tests.engine.house import VOCAB, House, full_group, window_group

GROUPS = ((full_group(15),), (full_group(15), window_group(6, 15)))
ERRORS = (StepFailed("s"), ValueError("v"), KeyError("k"), OSError("o"), ZeroDivisionError("z"))


class StingyPool(PagePool):
    """Keeps pages back: who asks for them fails."""

    num_withheld = 0

    @property
    def num_free(self) -> int:
        return max(0, super().num_free - self.num_withheld)


class Trouble:
    """What goes wrong in an engine, by chance."""

    def __init__(self, house: House, seed: int):
        self.house, self.random = house, random.Random(seed)
        self.faults = FaultyRunner(house.runner)
        house.engine.runner = self.faults

    def preempt(self) -> None:
        """Somebody in a slot has to begin again."""
        running = self.house.scheduler.running
        if running:
            self.house.scheduler._preempt(self.random.choice(running))

    def withhold(self) -> None:
        """Pages are scarce, or no longer."""
        for pool in self.house.scheduler.tables.pools:
            pool.num_withheld = self.random.randint(0, 7)

    def fail(self) -> None:
        """The next step."""
        where = self.random.choice(["launch", "sample", "read"])
        self.faults.fail_next(where, self.random.choice(ERRORS))


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    groups=st.sampled_from(GROUPS),
    lookahead=st.booleans(),
    steps=st.sampled_from([(1,), (1, 3)]),
    preempt_every=st.integers(1, 9),
    withhold_every=st.integers(1, 9),
    fail_every=st.integers(4, 30),
)
def test_outputs_survive_all_of_it(
    seed, groups, lookahead, steps, preempt_every, withhold_every, fail_every
):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxinfer.engine.tables.PagePool", StingyPool)
        house = House(groups, lookahead=lookahead, decode_steps=steps, max_model_len=24)
        trouble = Trouble(house, seed)
        for number in range(8):
            house.submit(
                f"r{number}",
                [trouble.random.randrange(1, VOCAB) for _ in range(trouble.random.randint(1, 12))],
                n=1 + number % 3,
                max_tokens=trouble.random.randint(1, 12),
                priority=number % 2,
                stop=("ab",) if number % 4 == 0 else (),
                bad_words=("cd", "e") if number % 5 == 0 else (),
                logprobs=1 if number % 3 == 0 else None,
                prompt_logprobs=0 if number == 6 else None,
            )
        count = 0
        while house.step():
            count += 1
            assert count < 5000, "the engine does not come to an end"
            if count < 200:  # long enough for all that goes wrong to pass
                if count % preempt_every == 0:
                    trouble.preempt()
                if count % withhold_every == 0:
                    trouble.withhold()
                if count % fail_every == 0:
                    trouble.fail()
        for name, request in house.requests.items():
            for index in range(request.params.n):
                output, expected = house.output(name, index), house.expected(name, index)
                if output.finish_reason is FinishReason.ERROR:  # it was alone when that happened
                    assert output.tokens == expected.tokens[: len(output.tokens)]
                else:
                    assert output == expected
        for pool in house.scheduler.tables.pools:
            pool.num_withheld = 0
        house.assert_idle()
