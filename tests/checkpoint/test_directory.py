"""Nothing outside a model directory is read on its behalf."""

import json

import pytest

from jaxinfer.checkpoint.directory import inside, read_config, shard_paths
from jaxinfer.errors import CorruptCheckpoint


def write_index(directory, weight_map):
    text = json.dumps({"weight_map": weight_map})
    (directory / "model.safetensors.index.json").write_text(text)


@pytest.fixture
def model(tmp_path):
    (tmp_path / "secret.safetensors").touch()
    directory = tmp_path / "model"
    directory.mkdir()
    return directory


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "/etc/passwd", "a/b", "a\\b", "..", ".", "", "a\0b", "x/../y"],
)
def test_an_index_may_only_name_plain_files(model, name):
    write_index(model, {"w": name})
    with pytest.raises(CorruptCheckpoint, match="only plain names"):
        shard_paths(model)


def test_a_link_out_of_the_directory_is_refused(model):
    (model / "model.safetensors").symlink_to(model.parent / "secret.safetensors")
    with pytest.raises(CorruptCheckpoint, match="outside of the model directory"):
        shard_paths(model)


def test_a_link_within_the_directory_is_followed(model):
    (model / "weights").touch()
    (model / "model.safetensors").symlink_to("weights")
    assert shard_paths(model).paths == (model / "model.safetensors",)


def test_a_snapshot_of_the_hub_cache_links_to_its_blobs(tmp_path):
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    blobs = tmp_path / "models--org--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (blobs / "0123").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/0123")
    assert read_config(snapshot) == {}
    (tmp_path / "elsewhere").write_text("{}")
    (snapshot / "other.json").symlink_to("../../../elsewhere")
    with pytest.raises(CorruptCheckpoint, match="outside"):
        inside(snapshot, "other.json")


def test_a_missing_shard_is_named(model):
    write_index(model, {"w": "model-00001-of-00002.safetensors"})
    with pytest.raises(CorruptCheckpoint, match=r"model-00001-of-00002.safetensors is missing"):
        shard_paths(model)


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000, '"x"'])
def test_a_config_that_is_no_json_object_is_refused(model, text):
    (model / "config.json").write_text(text)
    with pytest.raises(CorruptCheckpoint, match="JSON"):
        read_config(model)


@pytest.mark.parametrize("weight_map", [None, [], {}, {"w": 1}, {"w": None}])
def test_a_weight_map_that_is_none_is_refused(model, weight_map):
    write_index(model, weight_map)
    with pytest.raises(CorruptCheckpoint, match=r"weight_map|not in a file"):
        shard_paths(model)
