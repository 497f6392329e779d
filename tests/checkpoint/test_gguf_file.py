"""The GGUF file format: equal to what the `gguf` package wrote; hostile files are refused."""

import struct

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxinfer.checkpoint.gguf import GgufSource
from jaxinfer.checkpoint.gguf_file import GgufFile
from jaxinfer.errors import CheckpointError, CorruptCheckpoint, Unsupported

Q8_0, Q4_K = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.Q4_K
STRING, ARRAY, UINT32 = 8, 9, 4
LLAMA = {
    ".context_length": 64,
    ".embedding_length": 8,
    ".feed_forward_length": 16,
    ".block_count": 1,
    ".attention.head_count": 2,
    ".attention.layer_norm_rms_epsilon": 1e-5,
}


def text(value):
    encoded = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def key(name, kind, value):
    return text(name) + struct.pack("<I", kind) + value


def table_line(name="w", dimensions=(2,), kind=0, offset=0):
    numbers = struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)
    return text(name) + numbers


def encode(keys=(), tensors=(), data=bytes(8), *, counts=None, version=3, magic=b"GGUF"):
    num_tensors, num_keys = counts or (len(tensors), len(keys))
    head = magic + struct.pack("<IQQ", version, num_tensors, num_keys)
    head += b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data


@pytest.fixture
def open_bytes(tmp_path):
    def open_file(content):
        path = tmp_path / "x.gguf"
        path.write_bytes(content)
        return GgufFile(path)

    return open_file


def test_metadata_of_every_type_is_read_equal(tmp_path):
    path = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -100)
    writer.add_uint16("u16", 60_000)
    writer.add_int16("i16", -30_000)
    writer.add_uint32("u32", 4_000_000_000)
    writer.add_int32("i32", -2_000_000_000)
    writer.add_uint64("u64", 1 << 63)
    writer.add_int64("i64", -(1 << 62))
    writer.add_float32("f32", 0.1)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_string("text", "Grüße\n")
    writer.add_array("words", ["a", "", "ü"])
    writer.add_array("scores", [0.5, -1.0])
    writer.add_array("ids", [1, 2, 3])
    writer.add_array("flags", [True, False])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    metadata = GgufFile(path).metadata
    arrays = {name: metadata.pop(name).tolist() for name in ("scores", "ids", "flags")}
    assert arrays == {"scores": [0.5, -1.0], "ids": [1, 2, 3], "flags": [True, False]}
    assert metadata == {
        "general.architecture": "llama",
        "u8": 200,
        "i8": -100,
        "u16": 60_000,
        "i16": -30_000,
        "u32": 4_000_000_000,
        "i32": -2_000_000_000,
        "u64": 1 << 63,
        "i64": -(1 << 62),
        "f32": float(np.float32(0.1)),
        "f64": 0.1,
        "yes": True,
        "text": "Grüße\n",
        "words": ["a", "", "ü"],
    }


def test_rows_and_columns_are_those_of_the_whole_tensor(write_gguf, random_array):
    packed = gguf.quantize(random_array(6, 96), Q8_0)
    file = GgufFile(write_gguf("llama", {}, {"w": (packed, Q8_0), "v": random_array(5)}))
    whole = gguf.dequantize(packed, Q8_0)
    np.testing.assert_array_equal(file.read_rows("w", slice(None)), whole, strict=True)
    for columns in (slice(0, 32), slice(32, 64), slice(5, 70), slice(90, 96), slice(7, 7)):
        part = file.read_rows("w", slice(1, 4), columns)
        np.testing.assert_array_equal(part, whole[1:4, columns], strict=True)
    order = np.array([4, 0, 4])
    np.testing.assert_array_equal(file.read_rows("w", order), whole[order], strict=True)


def test_a_closed_file_is_not_read(write_gguf, random_array):
    file = GgufFile(write_gguf("llama", {}, {"v": random_array(5)}))
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.read_rows("v", slice(None))


def test_invalid_utf8_becomes_replacement_characters(open_bytes):
    words = key("words", ARRAY, struct.pack("<IQ", STRING, 1) + text(b"a\xff"))
    assert open_bytes(encode([words])).metadata == {"words": ["a\ufffd"]}


def test_version_2_is_read_as_version_3(open_bytes):
    assert open_bytes(encode([], [table_line()], version=2)).tensors["w"].shape == (2,)


HUGE = (1 << 64) - 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"GGUF", "the version of 4 bytes, but 0"),
        (encode(magic=b"GGML"), "not with b'GGUF'"),
        (encode(counts=(HUGE, 0)), f"{HUGE} tensors announced"),
        (encode(counts=(0, HUGE)), f"{HUGE} metadata keys announced"),
        (encode([struct.pack("<Q", HUGE)], counts=(0, 1), data=bytes(16)), "at most 65535"),
        (encode([key("k", STRING, struct.pack("<Q", HUGE))]), "'k' of .* bytes, but"),
        (encode([key("k", ARRAY, struct.pack("<IQ", UINT32, HUGE))]), "elements of 'k' announced"),
        (encode([key("k", ARRAY, struct.pack("<IQ", STRING, HUGE))]), "strings of 'k' announced"),
        (
            encode([key("k", ARRAY, struct.pack("<IQQ", STRING, 1, 1 << 40))]),
            "a string of 'k' runs past the end",
        ),
        (encode([key("k", ARRAY, struct.pack("<IQ", ARRAY, 1))]), "array of arrays"),
        (encode([key("k", 13, b"")]), "unknown value type 13"),
        (encode([key("k", ARRAY, struct.pack("<IQ", 99, 1))]), "unknown value type 99"),
        (encode([key("k", UINT32, bytes(4))] * 2), "'k' appears twice"),
        (encode([key("general.alignment", UINT32, struct.pack("<I", 24))]), "alignment is 24"),
        (encode([key("general.alignment", UINT32, bytes(4))]), "alignment is 0"),
        (encode([key("general.alignment", STRING, text("x"))]), "alignment is 'x'"),
        (encode([], [table_line(), table_line(offset=32)], bytes(64)), "'w' appears twice"),
        (encode([], [table_line(dimensions=())]), "0 dimensions"),
        (encode([], [table_line(dimensions=(1,) * 5)]), "5 dimensions"),
        (encode([], [table_line(dimensions=(2, 0))]), "no axis may be 0"),
        (encode([], [table_line(dimensions=(33,), kind=8)], bytes(99)), "blocks of 32"),
        (encode([], [table_line(dimensions=(1 << 62, 1 << 62))]), "the file has"),
        (encode([], [table_line(offset=1)]), "not a multiple of 32"),
        (encode([], [table_line(offset=32)]), "ends at byte"),
        (encode([], [table_line(offset=HUGE - 31)]), "ends at byte"),
        (encode([], [table_line("a"), table_line("b")]), "'a' and 'b' overlap"),
    ],
)
def test_a_file_that_lies_is_refused(open_bytes, content, message):
    with pytest.raises(CorruptCheckpoint, match=message):
        open_bytes(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (encode(version=1), "GGUF version 1; known are"),
        (encode(version=3 << 24), "big-endian"),
        (encode([], [table_line(kind=4)]), "'w' is stored as ggml type 4; known: .*Q4_K"),
    ],
)
def test_what_is_not_known_is_refused_as_such(open_bytes, content, message):
    with pytest.raises(Unsupported, match=message):
        open_bytes(content)


@pytest.fixture(scope="module")
def whole_model(tmp_path_factory):
    """A complete tiny model: a rope tensor, quantised and plain weights, a vocabulary."""
    path = tmp_path_factory.mktemp("fuzz") / "x.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in LLAMA.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"llama{name}", value)
    writer.add_token_list(["a", "b", "c"])
    writer.add_eos_token_id(1)
    generator = np.random.default_rng(0)
    packed = gguf.quantize(generator.standard_normal((3, 32)).astype(np.float32), Q8_0)
    writer.add_tensor("token_embd.weight", packed, raw_dtype=Q8_0)
    for name, shape in {"blk.0.attn_q.weight": (8, 8), "output_norm.weight": (8,)}.items():
        writer.add_tensor(name, generator.standard_normal(shape).astype(np.float32))
    writer.add_tensor("rope_freqs.weight", np.array([1, 8], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=500)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path, whole_model, data):
    damaged = bytearray(whole_model)
    positions = st.integers(0, len(damaged) - 1)
    for position in data.draw(st.lists(positions, max_size=4)):
        damaged[position] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.one_of(st.just(0), st.integers(0, len(damaged))))
    path = tmp_path / "x.gguf"
    path.write_bytes(damaged[: len(damaged) - cut])
    assert_refused_or_whole(path)


def test_any_one_byte_of_the_tables_may_be_wrong(tmp_path, whole_model):
    path = tmp_path / "x.gguf"
    tables_end = whole_model.index(b"rope_freqs.weight") + 64
    for position in range(tables_end):
        damaged = bytearray(whole_model)
        damaged[position] = 0xFF
        path.write_bytes(damaged)
        assert_refused_or_whole(path)


def assert_refused_or_whole(path):
    """A damaged file is refused with a typed error, or every tensor it names can be read."""
    try:
        source = GgufSource(path)
    except (CheckpointError, Unsupported):
        return
    with source:
        for name, info in source.tensors.items():
            assert source.read(name).shape == info.shape
