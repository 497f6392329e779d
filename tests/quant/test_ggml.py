"""Every ggml format decodes to exactly the numbers that the `gguf` package computes."""

import gguf
import numpy as np
import pytest

from jaxinfer.quant.ggml import FORMATS, dequantize

QUANTISED = [f for f in FORMATS.values() if f.elements > 1]
PLAIN = [f for f in FORMATS.values() if f.elements == 1]
#: Formats whose layout the package lists without decoding them; checked by hand below.
WITHOUT_PEER = {"Q1_0"}


def decode(blocks, block_format):
    out = np.empty((len(blocks), block_format.elements), block_format.dtype)
    dequantize(blocks, block_format, out)
    return out


def random_blocks(block_format, count, seed):
    return np.random.default_rng(seed).integers(
        0, 256, (count, block_format.nbytes), dtype=np.uint8
    )


@pytest.mark.parametrize("block_format", FORMATS.values(), ids=lambda f: f.name)
def test_number_elements_and_bytes_equal_those_of_the_gguf_package(block_format):
    peer = gguf.GGMLQuantizationType[block_format.name]
    assert block_format.number == int(peer)
    assert (block_format.elements, block_format.nbytes) == gguf.GGML_QUANT_SIZES[peer]


@pytest.mark.parametrize(
    "block_format", [f for f in QUANTISED if f.name not in WITHOUT_PEER], ids=lambda f: f.name
)
def test_random_blocks_decode_to_the_numbers_of_the_gguf_package(block_format):
    blocks = random_blocks(block_format, 3000, seed=block_format.number)
    peer = gguf.GGMLQuantizationType[block_format.name]
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(blocks, peer)
    np.testing.assert_array_equal(decode(blocks, block_format), expected, strict=True)


@pytest.mark.parametrize(
    "name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"]
)
def test_what_the_gguf_package_quantised_decodes_to_its_own_numbers(name):
    peer = gguf.GGMLQuantizationType[name]
    weights = np.random.default_rng(0).standard_normal((8, 512)).astype(np.float32)
    block_format = FORMATS[int(peer)]
    packed = gguf.quantize(weights, peer)
    actual = decode(packed.reshape(-1, block_format.nbytes), block_format)
    np.testing.assert_array_equal(actual.reshape(8, 512), gguf.dequantize(packed, peer))


def test_one_bit_blocks_are_plus_or_minus_their_scale():
    block = np.zeros((1, 18), np.uint8)
    block[0, :2] = np.array([0.5], np.float16).view(np.uint8)
    block[0, 2] = 0b00000101
    expected = np.full((1, 128), -0.5, np.float32)
    expected[0, [0, 2]] = 0.5
    (q1_0,) = (f for f in QUANTISED if f.name == "Q1_0")
    np.testing.assert_array_equal(decode(block, q1_0), expected)


@pytest.mark.parametrize("block_format", PLAIN, ids=lambda f: f.name)
def test_plain_formats_are_their_bytes(block_format):
    blocks = random_blocks(block_format, 50, seed=1)
    assert decode(blocks, block_format).tobytes() == blocks.tobytes()


def test_no_blocks_decode_to_no_numbers():
    for block_format in FORMATS.values():
        assert decode(random_blocks(block_format, 0, seed=0), block_format).size == 0
