"""The search for tile sizes, on an operation whose pages tell the tiles that it got."""

import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from pallas_kernels import candidate, search, tile_table, tune
from pallas_kernels.benchmark import Case, Operation


@dataclass(frozen=True, kw_only=True)
class Tiles:
    rows: int


@dataclass(frozen=True, kw_only=True)
class Problem:
    size: int


@dataclass(frozen=True, kw_only=True)
class Spec:
    size: int = 3
    layers: int = 1


HEURISTIC = Tiles(rows=8)
TOO_LARGE = Tiles(rows=64)
FAILS = Tiles(rows=-1)
WRONG = Tiles(rows=-2)
WRITES_WRONG = Tiles(rows=-3)
NO_NUMBER = Tiles(rows=-4)
CANDIDATES = [HEURISTIC, TOO_LARGE, Tiles(rows=2), Tiles(rows=4)]


def fail(rows):
    raise RuntimeError("an illegal address")


def case(spec, dtype, implementation):
    def run(carried, x):
        problem = Problem(size=spec.size)
        tiles = tile_table.tiles_for("fake", implementation, problem, lambda: HEURISTIC)
        if tiles == TOO_LARGE:
            raise ValueError("exceeds the memory")
        rows, written = jnp.full_like(carried["rows"], tiles.rows), carried["written"]
        if tiles == FAILS:
            rows = jax.pure_callback(fail, rows, rows)
        right = x * {WRONG: 1.1, NO_NUMBER: jnp.nan}.get(tiles, 1.0)
        pages = {"rows": rows, "written": written + float(tiles == WRITES_WRONG)}
        return jnp.full(spec.size, right + written), pages

    def make():
        return {"rows": jnp.zeros(()), "written": jnp.zeros(())}, (jnp.ones(()),)

    return Case(
        run=run,
        make=make,
        num_bytes=1,
        flops=1,
        facts={"layers": spec.layers},
        errors=lambda *_: {},
    )


SPECS = {"small": Spec(), "deep": Spec(layers=10), "wide": Spec(size=5)}
FAKE = Operation(name="fake", specs=SPECS, large_specs={}, case=case, changes={})


@pytest.fixture(autouse=True)
def fake_tuning(monkeypatch):
    module = SimpleNamespace(candidates=lambda implementation, problem: iter(CANDIDATES))
    monkeypatch.setitem(sys.modules, "pallas_kernels.fake", SimpleNamespace(tuning=module))
    monkeypatch.setitem(sys.modules, "pallas_kernels.fake.tuning", module)
    # A call takes as long as its tiles have rows.
    monkeypatch.setattr(
        candidate, "seconds_of", lambda step, repeats: [float(step.carried["rows"]), 100.0]
    )


@pytest.fixture
def tried(monkeypatch):
    """``tried(candidates)``: these, in place of those that there are."""
    return lambda *candidates: monkeypatch.setattr(
        sys.modules[__name__], "CANDIDATES", list(candidates)
    )


@pytest.fixture
def clock(monkeypatch):
    """A clock that each candidate moves on by a second."""
    now = [0.0]

    def step(case):
        now[0] += 1
        return real(case)

    real = candidate.Step
    monkeypatch.setattr(candidate, "Step", step)
    monkeypatch.setattr(search, "monotonic", lambda: now[0])


def found(*specs, **changed):
    mesh = Mesh(np.array(jax.devices()[:1]), ("chip",))
    settings = {"operation": FAKE, "mesh": mesh, "is_here": True} | changed
    return list(search.Search(**settings).entries(specs or ["small"], "a command"))


def test_the_fastest_candidate_that_can_be_made_is_taken():
    (entry,) = found()
    assert entry.tiles == {"rows": 2}
    assert entry.microseconds == 2e6
    assert (entry.key, entry.command) == ({"size": 3}, "a command")


def test_the_time_of_the_heuristic_is_written_beside_it():
    (entry,) = found()
    assert (entry.microseconds, entry.heuristic_microseconds) == (2e6, 8e6)
    (entry,) = found(is_here=False)
    assert (entry.microseconds, entry.heuristic_microseconds) == (None, None)


def test_the_time_is_that_of_one_layer_of_the_few_that_run():
    """The fake takes as long whatever its layers are, of which four are left."""
    (entry,) = found("deep")
    assert entry.microseconds == 2e6 / 4
    assert search.few_layers(Spec(layers=3)) == Spec(layers=3)
    assert search.few_layers(Problem(size=3)) == Problem(size=3)


def test_no_more_candidates_are_tried_than_asked_for():
    (entry,) = found(most=1)
    assert entry.tiles == {"rows": 8}


def test_for_a_chip_that_is_not_here_the_first_that_compiles_is_taken_and_not_measured(tried):
    tried(TOO_LARGE, HEURISTIC, Tiles(rows=2))
    (entry,) = found(is_here=False)
    assert (entry.tiles, entry.microseconds) == ({"rows": 8}, None)


@pytest.mark.parametrize("wrong", [WRONG, WRITES_WRONG, NO_NUMBER])
def test_what_returns_other_numbers_than_the_heuristic_is_not_taken(wrong, tried, capsys):
    """Or writes other pages, as the next step sees."""
    tried(HEURISTIC, wrong, Tiles(rows=4))
    (entry,) = found()
    assert entry.tiles == {"rows": 4}
    assert "its results are wrong" in capsys.readouterr().err


def test_what_fails_when_it_runs_is_not_taken(tried, capsys):
    tried(HEURISTIC, FAILS, Tiles(rows=4))
    (entry,) = found()
    assert entry.tiles == {"rows": 4}
    assert f"{FAILS}\n    JaxRuntimeError" in capsys.readouterr().err


@pytest.mark.parametrize("broken", [TOO_LARGE, FAILS, NO_NUMBER])
def test_where_the_heuristic_fails_nothing_can_be_held_against_it(broken, tried, capsys):
    tried(broken, Tiles(rows=4))
    assert found() == []
    assert "nothing to hold others against" in capsys.readouterr().err


def test_what_spills_registers_is_not_taken_but_held_against_if_it_is_the_heuristic(monkeypatch):
    spills = iter([True, False, True])  # What is too large has no report.
    monkeypatch.setattr(candidate, "has_spilled", lambda said: next(spills))
    (entry,) = found()
    assert (entry.tiles, entry.heuristic_microseconds) == ({"rows": 2}, 8e6)


def test_a_spec_that_cannot_be_traced_does_not_end_the_search(capsys):
    def but_for_small(spec, *how):
        if spec == SPECS["small"]:
            raise TypeError("no such spec")
        return case(spec, *how)

    (entry,) = found("small", "wide", operation=replace(FAKE, case=but_for_small))
    assert entry.key == {"size": 5}
    assert "small: TypeError: no such spec" in capsys.readouterr().err


def test_after_its_time_no_candidate_is_begun_and_what_was_found_is_given(clock, capsys):
    entries = found("small", "wide", deadline=3.0)
    assert [entry.key for entry in entries] == [{"size": 3}]
    assert entries[0].tiles == {"rows": 2}
    said = capsys.readouterr().err
    assert "the time is over after 3 of 4 candidates" in said
    assert "wide: not asked, the time is over" in said


@pytest.mark.usefixtures("no_program_cache")
def test_a_chip_that_runs_nothing_any_more_ends_the_command(tried, monkeypatch, tmp_path):
    """What was found until then is in the table."""
    tried(HEURISTIC, Tiles(rows=4), FAILS, Tiles(rows=2))
    monkeypatch.setattr(search, "is_alive", lambda: False)
    monkeypatch.setattr(tune, "is_accelerator", lambda: True)
    monkeypatch.setattr(tune, "OPERATIONS", ("fake",))
    bench = SimpleNamespace(OPERATION=FAKE)
    monkeypatch.setitem(sys.modules, "pallas_kernels.fake.bench", bench)
    monkeypatch.setattr(tile_table, "path_of", lambda operation: tmp_path / "tiles.json")
    with pytest.raises(SystemExit, match="the chip takes no program") as ended:
        tune.main(["fake"])
    assert ended.value.code != 0
    (entry,) = tile_table.read("fake")
    assert (entry.tiles, entry.microseconds) == ({"rows": 4}, 4e6)


def test_the_chip_that_is_here_computes():
    assert candidate.is_alive()


def test_what_was_measured_is_not_replaced_by_what_was_only_compiled():
    (measured,), (compiled,) = found(), found(is_here=False)
    assert tune.merged([measured], [compiled]) == (measured,)
    assert tune.merged([compiled], [measured]) == (compiled, measured)


def test_without_a_chip_one_must_be_named(capsys):
    with pytest.raises(SystemExit):
        tune.main(["grouped_matmul"])
    assert "name a --chip to compile for" in capsys.readouterr().err


def test_an_unknown_spec_is_refused_with_those_there_are(capsys):
    with pytest.raises(SystemExit):
        tune.main(["grouped_matmul", "--spec", "no-such"])
    assert "--spec no-such is not one of 64-experts" in capsys.readouterr().err
