"""safetensors directories: equal to what was saved, lazily, and hostile ones refused."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxinfer.checkpoint.safetensors import SafetensorsFile, SafetensorsSource
from jaxinfer.checkpoint.source import open_source
from jaxinfer.errors import CorruptCheckpoint, ModelNotFound, Unsupported

CONFIG = {"model_type": "llama"}


def encode(header, data=b""):
    """A safetensors file; the header is JSON text or an object."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.fixture
def write_shards(tmp_path):
    """Writes a model directory; shards maps file names to tensors."""

    def write(shards, index=None):
        (tmp_path / "config.json").write_text(json.dumps(CONFIG))
        for name, tensors in shards.items():
            safetensors.numpy.save_file(tensors, tmp_path / name)
        if index is not None:
            text = json.dumps({"metadata": {}, "weight_map": index})
            (tmp_path / "model.safetensors.index.json").write_text(text)
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("dtype", "storage"),
    [
        (np.float32, "F32"),
        (np.float16, "F16"),
        (ml_dtypes.bfloat16, "BF16"),
        (ml_dtypes.float8_e4m3fn, "F8_E4M3"),
        (np.int8, "I8"),
        (np.int64, "I64"),
        (np.bool_, "BOOL"),
    ],
)
def test_a_tensor_is_read_as_it_was_saved_whole_and_in_parts(tmp_path, dtype, storage):
    saved = (np.arange(24).reshape(4, 6) % 5).astype(dtype)
    path = tmp_path / "x.safetensors"
    header = {"__metadata__": {"format": "np"}, "w": entry(storage, (4, 6), (0, saved.nbytes))}
    path.write_bytes(encode(header, saved.tobytes()))
    file = SafetensorsFile(path)
    info = file.tensors["w"]
    assert (info.shape, info.dtype, info.storage) == ((4, 6), np.dtype(dtype), storage)
    np.testing.assert_array_equal(file.read("w"), saved, strict=True)
    part = file.read("w", (slice(1, 3), slice(2, None)))
    np.testing.assert_array_equal(part, saved[1:3, 2:], strict=True)


def test_what_the_safetensors_package_saved_is_read_equal(write_shards, random_array):
    saved = {"a": random_array(3, 4), "scalar": np.array(2, np.float32), "none": random_array(0)}
    with open_source(write_shards({"model.safetensors": saved})) as source:
        assert source.config == CONFIG
        assert source.tensors.keys() == saved.keys()
        for name, array in saved.items():
            np.testing.assert_array_equal(source.read(name), array, strict=True)


def test_shards_of_an_index_are_one_source(write_shards, random_array):
    a, b = random_array(2), random_array(3)
    index = {"a": "1.safetensors", "b": "2.safetensors"}
    directory = write_shards({"1.safetensors": {"a": a}, "2.safetensors": {"b": b}}, index)
    with SafetensorsSource(directory) as source:
        np.testing.assert_array_equal(source.read("a"), a)
        np.testing.assert_array_equal(source.read("b"), b)


def test_a_read_array_outlives_the_file(write_shards, random_array):
    saved = random_array(5)
    source = SafetensorsSource(write_shards({"model.safetensors": {"a": saved}}))
    array = source.read("a")
    source.close()
    array += 1
    np.testing.assert_array_equal(array, saved + 1)
    with pytest.raises(ValueError, match="closed"):
        source.read("a")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "header of 0 bytes announced in a file of 0"),
        (b"\xff" * 8 + b"{}", "announced in a file of 10 bytes"),
        ((99).to_bytes(8, "little") + b"{}", "header of 99 bytes"),
        (encode(b"{nonsense"), "not JSON"),
        (encode(b"[" * 100_000), "not JSON"),
        (encode(b"\xff\xfe{}"), "not JSON"),
        (encode(b"[]"), "list, not an object"),
        (encode(b'{"a": {}, "a": {}}'), "twice"),
        (encode({"a": []}), "no dtype, shape and data_offsets"),
        (encode({"a": {"dtype": "F32", "shape": [2]}}), "no dtype, shape and data_offsets"),
        (encode({"a": entry(shape=(-2,))}, bytes(8)), "shape"),
        (encode({"a": entry(shape=(True, 2))}, bytes(8)), "shape"),
        (encode({"a": entry(shape=(2.0,))}, bytes(8)), "shape"),
        (encode({"a": entry(offsets=(0, 4, 8))}, bytes(8)), "data_offsets"),
        (encode({"a": entry(offsets=(-8, 0))}, bytes(8)), "data_offsets"),
        (encode({"a": entry(offsets=(8, 0))}, bytes(8)), "needs 8 bytes"),
        (encode({"a": entry(shape=(3,))}, bytes(8)), "needs 12 bytes"),
        (encode({"a": entry(shape=(1 << 62, 1 << 62))}, bytes(8)), "needs"),
        (encode({"a": entry()}, bytes(4)), "end at byte"),
        (encode({"a": entry()}, bytes(12)), "end at byte"),
        (encode({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)), "overlaps"),
        (encode({"a": entry(), "b": entry(offsets=(12, 20))}, bytes(20)), "hole"),
        (encode({"a": entry(), "b": entry()}, bytes(8)), "overlaps"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, content, message):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CorruptCheckpoint, match=message):
        SafetensorsFile(path)


def test_an_unknown_dtype_is_named_with_the_known_ones(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(encode({"a": entry("F4")}, bytes(8)))
    with pytest.raises(Unsupported, match=r"'a' is stored as 'F4'; known: .*BF16"):
        SafetensorsFile(path)


def test_a_tensor_in_two_shards_is_refused(write_shards, random_array):
    tensors = {"a": random_array(2)}
    directory = write_shards({"1.safetensors": tensors, "2.safetensors": tensors})
    with pytest.raises(CorruptCheckpoint, match="'a' is both in"):
        SafetensorsSource(directory)


def test_an_index_that_contradicts_its_shards_is_refused(write_shards, random_array):
    shards = {"1.safetensors": {"a": random_array(2)}, "2.safetensors": {"b": random_array(2)}}
    index = {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}
    with pytest.raises(
        CorruptCheckpoint, match=r"'b' is in 1.safetensors; it is in 2\.safetensors"
    ):
        SafetensorsSource(write_shards(shards, index))
    index = {"a": "1.safetensors", "c": "2.safetensors"}
    with pytest.raises(CorruptCheckpoint, match=r"'c' is in 2.safetensors; it is nowhere"):
        SafetensorsSource(write_shards(shards, index))


def test_a_directory_without_config_or_weights_is_not_a_model(tmp_path):
    with pytest.raises(ModelNotFound, match=r"config\.json"):
        SafetensorsSource(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelNotFound, match=r"no .*safetensors"):
        SafetensorsSource(tmp_path)


WHOLE = encode({"a": entry(), "bb": entry("BF16", (2, 2), (8, 16))}, bytes(range(16)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(
    st.lists(
        st.tuples(st.integers(0, len(WHOLE) - 1), st.binary(min_size=1, max_size=3)), max_size=4
    ),
    st.integers(0, len(WHOLE)),
)
def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path, edits, length):
    damaged = bytearray(WHOLE)
    for position, patch in edits:
        damaged[position : position + len(patch)] = patch
    path = tmp_path / "x.safetensors"
    path.write_bytes(damaged[: len(WHOLE) - length])
    try:
        file = SafetensorsFile(path)
    except (CorruptCheckpoint, Unsupported):
        return
    for name, info in file.tensors.items():
        assert file.read(name).shape == info.shape
