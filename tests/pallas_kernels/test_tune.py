"""The search for tile sizes, on an operation whose result tells the tiles that it got."""

import sys
from dataclasses import dataclass
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from pallas_kernels import tile_table, tune
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


TOO_LARGE = 64
CANDIDATES = [Tiles(rows=rows) for rows in (TOO_LARGE, 8, 2, 4)]


def case(spec, dtype, implementation):
    def run(carried, x):
        problem = Problem(size=spec.size)
        tiles = tile_table.tiles_for("fake", implementation, problem, lambda: Tiles(rows=8))
        if tiles.rows == TOO_LARGE:
            raise ValueError("exceeds the memory")
        return jnp.full(spec.size, tiles.rows, jnp.int32), carried + x

    def make():
        return jnp.zeros((), jnp.int32), (jnp.ones((), jnp.int32),)

    return Case(
        run=run,
        make=make,
        num_bytes=1,
        flops=1,
        facts={"layers": spec.layers},
        errors=lambda *_: {},
    )


SPECS = {"small": Spec(), "deep": Spec(layers=10)}
FAKE = Operation(name="fake", specs=SPECS, large_specs={}, case=case, changes={})


@pytest.fixture(autouse=True)
def fake_tuning(monkeypatch):
    module = SimpleNamespace(candidates=lambda implementation, problem: iter(CANDIDATES))
    monkeypatch.setitem(sys.modules, "pallas_kernels.fake", SimpleNamespace(tuning=module))
    monkeypatch.setitem(sys.modules, "pallas_kernels.fake.tuning", module)
    # A call takes as long as its tiles have rows.
    monkeypatch.setattr(tune, "seconds_of", lambda step, repeats: [float(step()[0]), 100.0])


def search(spec="small", **changed):
    mesh = Mesh(np.array(jax.devices()[:1]), ("chip",))
    settings = {"operation": FAKE, "mesh": mesh, "is_here": True} | changed
    return list(tune.Search(**settings).entries([spec], "a command"))


def test_the_fastest_candidate_that_can_be_made_is_taken():
    (entry,) = search()
    assert entry.tiles == {"rows": 2}
    assert entry.microseconds == 2e6
    assert (entry.key, entry.command) == ({"size": 3}, "a command")


def test_the_time_of_the_heuristic_is_written_beside_it(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "CANDIDATES", [Tiles(rows=4), Tiles(rows=2)])
    (entry,) = search()
    assert (entry.microseconds, entry.heuristic_microseconds) == (2e6, 4e6)
    (entry,) = search(is_here=False)
    assert (entry.microseconds, entry.heuristic_microseconds) == (None, None)


def test_a_heuristic_that_does_not_compile_has_no_time():
    (entry,) = search()
    assert entry.heuristic_microseconds is None


def test_the_time_is_that_of_one_layer():
    (entry,) = search("deep")
    assert entry.microseconds == 2e5


def test_no_more_candidates_are_tried_than_asked_for():
    (entry,) = search(most=2)
    assert entry.tiles == {"rows": 8}


def test_for_a_chip_that_is_not_here_the_first_that_compiles_is_taken_and_not_measured():
    (entry,) = search(is_here=False)
    assert (entry.tiles, entry.microseconds) == ({"rows": 8}, None)


def test_what_was_measured_is_not_replaced_by_what_was_only_compiled():
    (measured,), (compiled,) = search(), search(is_here=False)
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
