"""Requests that the device cannot bear."""

from collections.abc import Callable

from jaxinfer.engine.sequence import Sequence
from tests.engine.house import House

#: Whether the device fails on a sequence with so many decode steps in its slot.
Poison = Callable[[Sequence, int], bool]


def poison(house: House, where: str, is_poison: Poison = lambda *_: True) -> None:
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
