"""Tile sizes found for chips: one table an operation, and what stands in it.

A kernel asks ``tiles_for`` while it is traced. It gets what the table holds for this chip and this
kind of call, or else what the kernel's heuristic says. ``pallas_kernels.tune`` writes the tables.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from pallas_kernels import dispatch
from pallas_kernels.powers import power_of_two_from

Tiles = TypeVar("Tiles")
"""A frozen dataclass: the tile sizes of one kernel."""
Problem = TypeVar("Problem", bound=Any)
"""A frozen dataclass: what the tile sizes depend on."""

PLAIN = (bool, int, float, str, type(None))
ROUNDED = frozenset(
    {"num_tokens", "num_rows", "max_queries", "num_slots", "num_positions", "pages_per_row"}
)
"""Fields of problems that count what a batch has, whatever the model."""


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
        heuristic_microseconds: the same for the tiles that the kernel would take without a table;
            None where nothing was measured.
        command: what found it.
        jax: the version of JAX that compiled it.
        date: ``YYYY-MM-DD``.
    """

    implementation: str
    chip: str
    key: Mapping[str, Any]
    tiles: Mapping[str, Any]
    microseconds: float | None
    command: str
    jax: str
    date: str
    heuristic_microseconds: float | None = None

    @property
    def identity(self) -> tuple:
        return _identity(self.implementation, self.chip, self.key)


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


def rounded(problem: Problem) -> Problem:
    """The problem that stands for all of its kind: tokens, rows, slots and pages are counted up to
    the next power of two, so that a table holds for all numbers between two of them."""
    counts = {field.name for field in fields(problem)} & ROUNDED
    return replace(problem, **{name: power_of_two_from(getattr(problem, name)) for name in counts})


def key_of(problem: Any) -> dict[str, Any]:
    """What stands in a table for a problem, a dataclass: its fields, ``rounded``, with dtypes by
    name."""
    values = {field.name: getattr(rounded(problem), field.name) for field in fields(problem)}
    return {name: x if isinstance(x, PLAIN) else np.dtype(x).name for name, x in values.items()}


def tiles_for(
    operation: str, implementation: str, problem: Any, heuristic: Callable[[], Tiles]
) -> Tiles:
    """The tile sizes for a problem on the chip of ``dispatch.chip()``: those on trial, or in the
    table, or of the heuristic."""
    guess = heuristic()
    identity = _identity(implementation, dispatch.chip().kind, key_of(problem))
    trials = _trials.get()
    if trials is None or trials.operation != operation:
        return _known(operation, identity, guess)
    if trials.tiles is None:
        tiles = _known(operation, identity, guess)
    else:
        tiles = trials.tiles.get(identity, guess)
    trials.asked[identity] = Question(implementation, problem, tiles)
    return tiles


def tiles_of(entry: Entry, kind: type[Tiles]) -> Tiles:
    """What stands in an entry, as the kernel takes it."""
    sizes = {name: tuple(x) if isinstance(x, list) else x for name, x in entry.tiles.items()}
    return kind(**sizes)


def _known(operation: str, identity: tuple, guess: Tiles) -> Tiles:
    found = _by_identity(operation).get(identity)
    return guess if found is None else tiles_of(found, type(guess))


class Question(NamedTuple):
    """What a kernel asked for while it was traced, and what it got."""

    implementation: str
    problem: Any
    tiles: Any


@dataclass(frozen=True, kw_only=True)
class Trials:
    """Tiles by identity that an operation's kernels take, and all that they ask for."""

    operation: str
    tiles: Mapping[tuple, Any] | None
    asked: dict[tuple, Question]


@contextmanager
def trial(operation: str, tiles: Mapping[tuple, Any] | None) -> Iterator[dict[tuple, Question]]:
    """Within it, calls that are traced take ``tiles`` where they name them, and else what the
    heuristic says, whatever the table holds; None changes nothing. Gives all that was asked, by
    identity."""
    trials = Trials(operation=operation, tiles=tiles, asked={})
    token = _trials.set(trials)
    try:
        yield trials.asked
    finally:
        _trials.reset(token)


_trials: ContextVar[Trials | None] = ContextVar("trials", default=None)


@cache
def _by_identity(operation: str) -> dict[tuple, Entry]:
    return {entry.identity: entry for entry in read(operation)}


def _identity(implementation: str, chip: str, key: Mapping[str, Any]) -> tuple:
    return implementation, chip, tuple(sorted(key.items()))
