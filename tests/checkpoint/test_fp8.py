"""Matrices in blocks of FP8 as a source: what is shown, what is refused; and a whole model."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jaxinfer.checkpoint.fp8 import Fp8Source
from jaxinfer.checkpoint.source import open_source
from jaxinfer.errors import ConfigError, CorruptCheckpoint
from jaxinfer.models.loading import load_model
from jaxinfer.models.model import flat
from jaxinfer.models.registry import model_config
from jaxinfer.quant.fp8_blocks import num_blocks
from sharding import make_mesh
from tests.golden.models.seeded import seeded_tensor
from tests.models.golden_case import GoldenCase

FP8 = ml_dtypes.float8_e4m3fn
#: As DeepSeek-V3 has it.
QUANTIZATION = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}
NAME, FACTORS = "a.weight", "a.weight_scale_inv"


def packed(name: str, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers and factors near a seeded tensor, and what they stand for."""
    rng = np.random.default_rng(len(name))
    factors = rng.uniform(1e-3, 4e-3, num_blocks(shape)).astype(np.float32)
    of_each = factors.repeat(128, axis=0)[: shape[0]].repeat(128, axis=1)[:, : shape[1]]
    numbers = (seeded_tensor(name, shape) / of_each).astype(FP8)
    return numbers, factors, numbers.astype(np.float32) * of_each


def write(directory: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(tensors, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize("storage", [np.float32, ml_dtypes.bfloat16])
def test_a_matrix_is_shown_and_read_as_the_numbers_it_stands_for(tmp_path, storage):
    numbers, factors, matrix = packed(NAME, (200, 300))
    if storage != np.float32:
        factors = factors.astype(storage)
        rounded = factors.astype(np.float32)
        of_each = rounded.repeat(128, axis=0)[:200].repeat(128, axis=1)[:, :300]
        matrix = numbers.astype(np.float32) * of_each
    tensors = {NAME: numbers, FACTORS: factors, "b": np.ones(3, np.float32)}
    config = {"quantization_config": QUANTIZATION}
    with open_source(write(tmp_path, config, tensors)) as source:
        assert set(source.tensors) == {NAME, "b"}
        info = source.tensors[NAME]
        assert (info.shape, info.dtype, info.storage) == ((200, 300), np.float32, "FP8")
        np.testing.assert_array_equal(source.read(NAME), matrix)
        for part in ((slice(130, 200),), (slice(3, 129), slice(127, 290)), (slice(7, 7),)):
            np.testing.assert_array_equal(source.read(NAME, part), matrix[part])
        np.testing.assert_array_equal(source.read("b", (slice(1, 2),)), np.ones(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({FACTORS: None}, "a.weight is FP8 and has no a.weight_scale_inv"),
        ({NAME: None}, "a.weight_scale_inv has no a.weight"),
        ({NAME: np.zeros((200, 300), np.float32)}, "a.weight is stored as F32.*be F8_E4M3"),
        ({FACTORS: np.zeros((2, 3), np.int8)}, "a.weight_scale_inv is stored as I8.*one of F32"),
        ({FACTORS: np.zeros((1, 3), np.float32)}, r"a.weight_scale_inv \(1, 3\).*here \(2, 3\)"),
        ({FACTORS: np.zeros((2, 4), np.float32)}, r"a.weight_scale_inv \(2, 4\).*here \(2, 3\)"),
        ({FACTORS: np.zeros((), np.float32)}, r"a.weight_scale_inv \(\).*here \(2, 3\)"),
    ],
)
def test_numbers_and_factors_that_do_not_belong_together_are_corrupt(tmp_path, change, message):
    numbers, factors, _ = packed(NAME, (200, 300))
    tensors = {NAME: numbers, FACTORS: factors} | change
    tensors = {name: array for name, array in tensors.items() if array is not None}
    write(tmp_path, {"quantization_config": QUANTIZATION}, tensors)
    with pytest.raises(CorruptCheckpoint, match=message):
        open_source(tmp_path)


def test_a_packed_model_loads_as_the_unpacked_one(tmp_path):
    case = GoldenCase("deepseek_v3")
    plain, mixed = {}, {}
    for name, shape in case.shapes.items():
        plain[name] = mixed[name] = seeded_tensor(name, shape)
        if name.endswith("_proj.weight") or name.endswith("kv_a_proj_with_mqa.weight"):
            mixed[name], mixed[f"{name}_scale_inv"], plain[name] = packed(name, shape)
    models = []
    for folder, quantization, tensors in (("plain", None, plain), ("packed", QUANTIZATION, mixed)):
        config = {**case.config, "quantization_config": quantization}
        with open_source(write(tmp_path / folder, config, tensors)) as source:
            assert isinstance(source, Fp8Source) == (folder == "packed")
            models.append(flat(load_model(source, mesh=make_mesh(), dtype="bfloat16").params))
    expected, found = models
    assert expected.keys() == found.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=str(path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight_block_size": None}, r"weight_block_size = None.*must be \[128, 128\]"),
        ({"weight_block_size": [1, 128]}, r"weight_block_size = \[1, 128\]"),
        ({"activation_scheme": "static"}, "activation_scheme = 'static'.*'dynamic'"),
        ({"fmt": "e5m2"}, "fmt = 'e5m2'.*'e4m3'"),
        ({"scale_fmt": "int"}, "scale_fmt = 'int'.*'float' or 'ue8m0'"),
        ({"modules_to_convert": ["embed"]}, "quantization_config.modules_to_convert"),
    ],
)
def test_other_settings_are_refused_by_name(fields, message):
    config = {**GoldenCase("llama").config, "quantization_config": {**QUANTIZATION, **fields}}
    with pytest.raises(ConfigError, match=message):
        model_config(config)


def test_any_family_may_be_packed_so():
    for name in ("llama", "qwen3_moe", "gpt_oss"):
        config = GoldenCase(name).config
        settings = {**QUANTIZATION, "modules_to_not_convert": ["lm_head"], "scale_fmt": "ue8m0"}
        assert model_config({**config, "quantization_config": settings}) == model_config(config)
