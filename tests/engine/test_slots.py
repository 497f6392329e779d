"""Slots: lent once at a time, and every loan is told from all others."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from jaxinfer.engine.slots import Slots


class SlotsMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.slots = Slots(3)
        self.lent = {}
        self.ended = []

    @precondition(lambda self: len(self.lent) < 3)
    @rule(owner=st.integers())
    def acquire(self, owner):
        slot = self.slots.acquire(owner)
        assert slot.index not in {other.index for other in self.lent}
        self.lent[slot] = owner

    @precondition(lambda self: self.lent)
    @rule(data=st.data())
    def release(self, data):
        slot = data.draw(st.sampled_from(list(self.lent)))
        self.slots.release(slot)
        del self.lent[slot]
        self.ended.append(slot)

    @invariant()
    def only_present_loans_have_an_owner(self):
        self.slots.check()
        assert self.slots.num_free == 3 - len(self.lent)
        for slot, owner in self.lent.items():
            assert self.slots.owner(slot.index, slot.generation) == owner
        for slot in self.ended:
            assert self.slots.owner(slot.index, slot.generation) is None


TestSlotsMachine = SlotsMachine.TestCase
TestSlotsMachine.settings = settings(max_examples=30, stateful_step_count=20)


def test_a_slot_is_given_back_once():
    slots = Slots(1)
    slot = slots.acquire("a")
    slots.release(slot)
    with pytest.raises(KeyError):
        slots.release(slot)
    slots.acquire("b")
    with pytest.raises(AssertionError, match="given back before"):
        slots.release(slot)
