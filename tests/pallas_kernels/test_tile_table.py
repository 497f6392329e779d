"""Tables of tile sizes: what a kernel gets, and what is written."""

from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from pallas_kernels import tile_table
from pallas_kernels.tile_table import Entry


@dataclass(frozen=True, kw_only=True)
class Tiles:
    rows: int
    columns: tuple[int, ...]


ENTRY = Entry(
    implementation="tpu",
    chip="TPU v6 lite",
    key={"case": "decode", "num_tokens": 64, "dtype": "bfloat16"},
    tiles={"rows": 8, "columns": [256, 512]},
    microseconds=None,
    command="python -m pallas_kernels.tune",
    jax="0.10.2",
    date="2026-11-21",
)


@dataclass(frozen=True, kw_only=True)
class Problem:
    case: str = "decode"
    num_tokens: int = 50
    dtype: object = np.dtype("bfloat16")


V6E = AbstractDevice(device_kind="TPU v6 lite", num_cores=1, platform="tpu")
V5P = AbstractDevice(device_kind="TPU v5", num_cores=1, platform="tpu")


@pytest.fixture(autouse=True)
def table(tmp_path, monkeypatch):
    monkeypatch.setattr(tile_table, "path_of", lambda operation: tmp_path / f"{operation}.json")
    tile_table._by_identity.cache_clear()
    yield
    tile_table._by_identity.cache_clear()


def tiles_for(implementation="tpu", chip=V6E, **changed):
    guess = Tiles(rows=1, columns=(1,))
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("chip",), abstract_device=chip)):
        return tile_table.tiles_for(
            "an_operation", implementation, Problem(**changed), heuristic=lambda: guess
        )


def test_without_a_table_the_heuristic_decides():
    assert tile_table.read("an_operation") == ()
    assert tiles_for() == Tiles(rows=1, columns=(1,))


@pytest.mark.parametrize(
    "other",
    [{"implementation": "gpu"}, {"chip": V5P}, {"case": "prefill"}, {"num_tokens": 65}],
)
def test_the_table_decides_for_its_own_chip_and_kind_of_call(other):
    tile_table.write("an_operation", (ENTRY,))
    assert tiles_for() == tiles_for(num_tokens=33) == Tiles(rows=8, columns=(256, 512))
    assert tiles_for(**other) == Tiles(rows=1, columns=(1,))


def test_a_later_entry_replaces_an_earlier_one_and_what_is_written_is_read():
    later = replace(ENTRY, tiles={"rows": 16, "columns": [128]}, microseconds=12.5)
    other = replace(ENTRY, chip="TPU v5")
    tile_table.write("an_operation", (ENTRY, other, later))
    assert set(map(repr, tile_table.read("an_operation"))) == {repr(other), repr(later)}
    assert tiles_for() == Tiles(rows=16, columns=(128,))


def test_tiles_on_trial_come_before_the_table_and_all_that_is_asked_is_known():
    tile_table.write("an_operation", (ENTRY,))
    tried = Tiles(rows=2, columns=(2,))
    with tile_table.trial("an_operation", {ENTRY.identity: tried}) as asked:
        assert tiles_for() == tried
        assert tiles_for(case="prefill") == Tiles(rows=1, columns=(1,))
    first, second = asked.values()
    assert ENTRY.identity in asked
    assert (first.problem, first.tiles) == (Problem(), tried)
    assert second.problem == Problem(case="prefill")
    assert second.tiles == Tiles(rows=1, columns=(1,))
    with tile_table.trial("an_operation", None) as asked:
        assert tiles_for() == asked[ENTRY.identity].tiles == Tiles(rows=8, columns=(256, 512))
    with tile_table.trial("another", {ENTRY.identity: tried}):
        assert tiles_for() == Tiles(rows=8, columns=(256, 512))
