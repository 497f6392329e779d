"""Slots: the rows of the decode batch, each lent to one sequence at a time."""

from dataclasses import dataclass
from typing import Generic, TypeVar

Owner = TypeVar("Owner")


@dataclass(frozen=True)
class Slot:
    """A slot as lent to one sequence; the generation tells this loan from all others."""

    index: int
    generation: int


class Slots(Generic[Owner]):
    """Lends ``num_slots`` slots. What a step brings for a loan that has ended finds no owner."""

    def __init__(self, num_slots: int):
        self.num_slots = num_slots
        self._free = list(reversed(range(num_slots)))
        self._loans: dict[int, tuple[int, Owner]] = {}
        self._num_loans = 0

    @property
    def num_free(self) -> int:
        return len(self._free)

    def acquire(self, owner: Owner) -> Slot:
        """Lends a free slot; ask ``num_free`` first."""
        self._num_loans += 1
        slot = Slot(self._free.pop(), self._num_loans)
        self._loans[slot.index] = slot.generation, owner
        return slot

    def release(self, slot: Slot) -> None:
        generation, _ = self._loans.pop(slot.index)
        assert generation == slot.generation, f"{slot} was given back before"
        self._free.append(slot.index)

    def owner(self, index: int, generation: int) -> Owner | None:
        """Who holds this very loan, or None when it has ended."""
        present, owner = self._loans.get(index, (None, None))
        return owner if present == generation else None

    def check(self) -> None:
        """Every slot is either free or lent, and once."""
        assert sorted([*self._loans, *self._free]) == list(range(self.num_slots))
