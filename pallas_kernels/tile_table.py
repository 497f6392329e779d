"""Tile sizes found for chips: one table an operation, and what stands in it.

A kernel asks ``tiles_for`` while it is traced. It gets what the table holds for this chip and this
kind of call, or else what the kernel's heuristic says. ``pallas_kernels.tune`` writes the tables.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

Tiles = TypeVar("Tiles")
"""A frozen dataclass of ints: the tile sizes of one kernel."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What was found for one kind of call on one chip.

    Attributes:
        implementation: ``tpu`` or ``gpu``.
        chip: its kind, as JAX names it.
        key: what the choice depends on, by name.
        tiles: the fields of the kernel's tile sizes.
        microseconds: of one call, measured on that chip; None where the tiles were only compiled
            within its budgets.
        command: what found it.
        jax: the version of JAX that compiled it.
        date: ``YYYY-MM-DD``.
    """

    implementation: str
    chip: str
    key: Mapping[str, Any]
    tiles: Mapping[str, int]
    microseconds: float | None
    command: str
    jax: str
    date: str

    @property
    def identity(self) -> tuple:
        return self.implementation, self.chip, tuple(sorted(self.key.items()))


def path_of(operation: str) -> Path:
    """The table of an operation, beside its kernels."""
    return Path(__file__).parent / operation / "tiles.json"


def read(operation: str) -> tuple[Entry, ...]:
    """All that is known; nothing where no table was written."""
    path = path_of(operation)
    if not path.is_file():
        return ()
    return tuple(Entry(**entry) for entry in json.loads(path.read_text(encoding="utf-8")))


def write(operation: str, entries: tuple[Entry, ...]) -> None:
    """Replaces the table; of entries with one identity the last stays."""
    kept = {entry.identity: asdict(entry) for entry in entries}
    ordered = [kept[identity] for identity in sorted(kept, key=repr)]
    text = "[\n" + ",\n".join("  " + json.dumps(entry) for entry in ordered) + "\n]\n"
    path_of(operation).write_text(text, encoding="utf-8")
    _by_identity.cache_clear()


def tiles_for(
    operation: str,
    implementation: str,
    chip: str,
    key: Mapping[str, Any],
    heuristic: Callable[[], Tiles],
) -> Tiles:
    """The tile sizes for a call: those on trial, or in the table, or of the heuristic."""
    on_trial = _on_trial.get()
    if on_trial is not None and on_trial[0] == (operation, implementation):
        return on_trial[1]
    guess = heuristic()
    found = _by_identity(operation).get((implementation, chip, tuple(sorted(key.items()))))
    return guess if found is None else type(guess)(**found.tiles)


@contextmanager
def trial(operation: str, implementation: str, tiles: Any) -> Iterator[None]:
    """Within it, calls of a kernel that are traced take these tiles, whatever the table says."""
    token = _on_trial.set(((operation, implementation), tiles))
    try:
        yield
    finally:
        _on_trial.reset(token)


_on_trial: ContextVar[tuple[tuple[str, str], Any] | None] = ContextVar("tiles", default=None)


@cache
def _by_identity(operation: str) -> dict[tuple, Entry]:
    return {entry.identity: entry for entry in read(operation)}
