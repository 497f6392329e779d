"""Tables of tile sizes: what a kernel gets, and what is written."""

from dataclasses import dataclass, replace

import pytest

from pallas_kernels import tile_table
from pallas_kernels.tile_table import Entry


@dataclass(frozen=True, kw_only=True)
class Tiles:
    rows: int
    columns: int


ENTRY = Entry(
    implementation="tpu",
    chip="TPU v6 lite",
    key={"case": "decode", "head_dim": 128},
    tiles={"rows": 8, "columns": 256},
    microseconds=None,
    command="python -m pallas_kernels.tune",
    jax="0.10.2",
    date="2026-11-21",
)
KEY = {"head_dim": 128, "case": "decode"}


@pytest.fixture(autouse=True)
def table(tmp_path, monkeypatch):
    monkeypatch.setattr(tile_table, "path_of", lambda operation: tmp_path / f"{operation}.json")
    tile_table._by_identity.cache_clear()
    yield
    tile_table._by_identity.cache_clear()


def tiles_for(**changed):
    asked = {"implementation": "tpu", "chip": "TPU v6 lite", "key": KEY} | changed
    guess = Tiles(rows=1, columns=1)
    return tile_table.tiles_for("an_operation", heuristic=lambda: guess, **asked)


def test_without_a_table_the_heuristic_decides():
    assert tile_table.read("an_operation") == ()
    assert tiles_for() == Tiles(rows=1, columns=1)


@pytest.mark.parametrize(
    "other",
    [{"implementation": "gpu"}, {"chip": "TPU v5"}, {"key": {"case": "decode", "head_dim": 64}}],
)
def test_the_table_decides_for_its_own_chip_and_kind_of_call(other):
    tile_table.write("an_operation", (ENTRY,))
    assert tiles_for() == Tiles(rows=8, columns=256)
    assert tiles_for(**other) == Tiles(rows=1, columns=1)


def test_a_later_entry_replaces_an_earlier_one_and_what_is_written_is_read():
    later = replace(ENTRY, tiles={"rows": 16, "columns": 128}, microseconds=12.5)
    other = replace(ENTRY, chip="TPU v5")
    tile_table.write("an_operation", (ENTRY, other, later))
    assert set(map(repr, tile_table.read("an_operation"))) == {repr(other), repr(later)}
    assert tiles_for() == Tiles(rows=16, columns=128)


def test_tiles_on_trial_come_before_the_table_and_only_for_their_kernel():
    tile_table.write("an_operation", (ENTRY,))
    with tile_table.trial("an_operation", "tpu", Tiles(rows=2, columns=2)):
        assert tiles_for() == Tiles(rows=2, columns=2)
        assert tiles_for(implementation="gpu") == Tiles(rows=1, columns=1)
    with tile_table.trial("another", "tpu", Tiles(rows=2, columns=2)):
        assert tiles_for() == Tiles(rows=8, columns=256)
