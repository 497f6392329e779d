"""Packed experts as a source: what is shown, what is read, what is refused; and a whole model."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxinfer.checkpoint import mxfp4
from jaxinfer.checkpoint.mxfp4 import Mxfp4Source
from jaxinfer.checkpoint.source import open_source
from jaxinfer.errors import CorruptCheckpoint, Unsupported
from jaxinfer.models.loading import load_model
from jaxinfer.models.registry import model_config
from jaxinfer.quant.mxfp4 import decode
from sharding import make_mesh
from tests.golden.models.seeded import seeded_tensor
from tests.models.golden_case import GoldenCase

QUANTIZATION = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"],
}
CASE = GoldenCase("gpt_oss")
#: One layer as wide as whole groups.
CONFIG = {
    **CASE.config,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "layer_types": ["sliding_attention"],
}
SHAPES = {
    name: tuple(64 if size == 48 else size for size in shape)
    for name, shape in CASE.shapes.items()
    if ".layers." not in name or ".layers.0." in name
}


def packed(shape, seed=0):
    """Random blocks and scales of ``[E, in, out]``, and what they stand for."""
    num_experts, size_in, size_out = shape
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (num_experts, size_out, size_in // 32, 16), dtype=np.uint8)
    scales = rng.integers(122, 126, blocks.shape[:-1], dtype=np.uint8)
    out = np.empty((num_experts, size_out, size_in), ml_dtypes.bfloat16)
    decode(blocks.reshape(-1, 16), scales.reshape(-1), out.reshape(-1, 32))
    return blocks, scales, out.swapaxes(1, 2)


def write(directory, config, tensors):
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")
    return directory


@pytest.fixture
def pair(tmp_path):
    """A directory with one packed and one plain tensor, and the matrices of the packed one."""
    blocks, scales, matrices = packed((3, 64, 10))
    tensors = {"a.down_proj_blocks": blocks, "a.down_proj_scales": scales, "b": np.ones(3)}
    config = {"model_type": "gpt_oss", "quantization_config": QUANTIZATION}
    return write(tmp_path, config, tensors), matrices


def test_a_pair_is_shown_and_read_as_the_matrices_it_stands_for(pair):
    directory, matrices = pair
    with open_source(directory) as source:
        assert set(source.tensors) == {"a.down_proj", "b"}
        info = source.tensors["a.down_proj"]
        assert (info.shape, info.dtype, info.storage) == ((3, 64, 10), matrices.dtype, "MXFP4")
        np.testing.assert_array_equal(source.read("a.down_proj"), matrices)
        part = (slice(1, 3), slice(0, 32), slice(4, 9))
        np.testing.assert_array_equal(source.read("a.down_proj", part), matrices[part])
        np.testing.assert_array_equal(source.read("b", (slice(1, 2),)), np.ones(1))


def test_only_the_bytes_of_the_experts_asked_for_are_read(pair, monkeypatch):
    directory, _ = pair
    source = open_source(directory)
    asked, read = [], source._packed.read
    monkeypatch.setattr(
        source._packed, "read", lambda *args: asked.append(read(*args).nbytes) or read(*args)
    )
    source.read("a.down_proj", (slice(2, 3),))
    assert sum(asked) == 64 * 10 // 2 + 64 * 10 // 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a.down_proj_scales": None}, "a.down_proj_blocks has no a.down_proj_scales"),
        ({"a.down_proj_scales": np.zeros((3, 10, 3), np.uint8)}, r"\(3, 10, 3\).*belong together"),
        ({"a.down_proj_blocks": np.zeros((3, 10, 2, 8), np.uint8)}, r"\(3, 10, 2, 8\).*belong"),
        ({"a.down_proj_scales": np.zeros((3, 10, 2), np.int8)}, "stored as I8; MXFP4 is U8"),
    ],
)
def test_pairs_that_do_not_belong_together_are_corrupt(tmp_path, change, message):
    blocks, scales, _ = packed((3, 64, 10))
    tensors = {"a.down_proj_blocks": blocks, "a.down_proj_scales": scales} | change
    tensors = {name: array for name, array in tensors.items() if array is not None}
    write(tmp_path, {"model_type": "gpt_oss", "quantization_config": QUANTIZATION}, tensors)
    with pytest.raises(CorruptCheckpoint, match=message):
        open_source(tmp_path)


def test_a_packed_model_loads_as_the_unpacked_one_and_decodes_once(tmp_path, monkeypatch):
    decoded = []

    def counted(blocks, scales, out):
        decoded.append(out.size)
        decode(blocks, scales, out)

    monkeypatch.setattr(mxfp4, "decode", counted)
    plain = {name: seeded_tensor(name, shape) for name, shape in SHAPES.items()}
    mixed = dict(plain)
    for seed, part in enumerate(("gate_up_proj", "down_proj")):
        name = f"model.layers.0.mlp.experts.{part}"
        blocks, scales, matrices = packed(SHAPES[name], seed)
        plain[name] = matrices.astype(np.float32)
        del mixed[name]
        mixed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
    models = []
    for folder, config, tensors in (
        ("plain", CONFIG, plain),
        ("packed", {**CONFIG, "quantization_config": QUANTIZATION}, mixed),
    ):
        with open_source(write(tmp_path / folder, config, tensors)) as source:
            assert isinstance(source, Mxfp4Source) == (folder == "packed")
            models.append(load_model(source, mesh=make_mesh(), dtype="float32"))
    experts, unpacked = (model.params["layers"][0]["mlp"]["experts"] for model in models)
    for part in ("gate", "up", "down"):
        for kind in ("kernel", "bias"):
            np.testing.assert_array_equal(unpacked[part][kind], experts[part][kind])
    # Gate and up are columns of the same tensor.
    assert sum(decoded) == sum(experts[part]["kernel"].size for part in ("gate", "up", "down"))


@pytest.mark.parametrize(
    ("case", "quantization"),
    [
        ("mixtral", QUANTIZATION),
        ("gpt_oss", {"quant_method": "awq"}),
        ("gpt_oss", {"bits": 4}),
    ],
)
def test_other_quantisations_and_other_families_are_a_clear_no(case, quantization):
    config = {**GoldenCase(case).config, "quantization_config": quantization}
    with pytest.raises(Unsupported, match=r"quantization_config = .*not read by this build"):
        model_config(config)
