"""Rope scaling comes back out of metadata and of tensors of divisors."""

import math

import numpy as np
import pytest

from jaxinfer.checkpoint.gguf import GgufSource
from jaxinfer.errors import CorruptCheckpoint, Unsupported

METADATA = {
    ".context_length": 131072,
    ".embedding_length": 256,
    ".feed_forward_length": 128,
    ".block_count": 1,
    ".attention.head_count": 4,
    ".attention.layer_norm_rms_epsilon": 1e-6,
    ".rope.freq_base": 500000.0,
}


@pytest.fixture
def scaling(write_gguf):
    def scaling_of(metadata, vectors=None, architecture="llama"):
        tensors = {"token_embd.weight": np.zeros((10, 256), np.float32)} | (vectors or {})
        with GgufSource(write_gguf(architecture, METADATA | metadata, tensors)) as source:
            return source.config["rope_scaling"]

    return scaling_of


def llama3_factors(factor, low, high, length, head_dim=64, theta=500000.0):
    """The tensor as llama.cpp's converter makes it, one frequency at a time."""
    factors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (i / head_dim)
        if wavelength < length / high:
            factors.append(1)
        elif wavelength > length / low:
            factors.append(factor)
        else:
            smooth = (length / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return {"rope_freqs.weight": np.array(factors, np.float32)}


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_scaling_is_found_in_its_divisors(scaling, factor):
    assert scaling({}, llama3_factors(factor, 1.0, 4.0, 8192)) == {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def test_unusual_llama_3_scaling_is_fitted_with_a_low_factor_of_one(scaling):
    """Only ratios show in the divisors: (2, 16, 8192) is (1, 8, 4096)."""
    assert scaling({}, llama3_factors(16.0, 2.0, 16.0, 8192)) == {
        "rope_type": "llama3",
        "factor": 16.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": pytest.approx(8.0, rel=1e-3),
        "original_max_position_embeddings": pytest.approx(4096, abs=2),
    }


def test_divisors_of_one_scale_nothing(scaling):
    assert scaling({}, {"rope_freqs.weight": np.ones(32, np.float32)}) is None


def test_divisors_of_another_rule_are_refused(scaling, random_array):
    divisors = 1 + np.abs(random_array(32))
    with pytest.raises(Unsupported, match="do not follow Llama 3's rule"):
        scaling({}, {"rope_freqs.weight": divisors})


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_divisors_that_divide_by_nothing_are_corrupt(scaling, value):
    with pytest.raises(CorruptCheckpoint, match="not above 0"):
        scaling({}, {"rope_freqs.weight": np.full(32, value, np.float32)})


def test_longrope_divisors_are_lists_of_the_config(scaling):
    vectors = {
        "rope_factors_long.weight": np.array([1, 2.5, 8], np.float32),
        "rope_factors_short.weight": np.array([1, 1, 1.25], np.float32),
    }
    assert scaling({}, vectors, "phi3") == {
        "rope_type": "longrope",
        "short_factor": [1, 1, 1.25],
        "long_factor": [1, 2.5, 8],
    }
    del vectors["rope_factors_short.weight"]
    with pytest.raises(CorruptCheckpoint, match="no tensor 'rope_factors_short"):
        scaling({}, vectors, "phi3")


def test_linear_and_yarn_scaling_are_metadata(scaling):
    linear = {".rope.scaling.type": "linear", ".rope.scaling.factor": 8.0}
    assert scaling(linear) == {"rope_type": "linear", "factor": 8.0}
    yarn = {
        ".rope.scaling.type": "yarn",
        ".rope.scaling.factor": 4.0,
        ".rope.scaling.original_context_length": 32768,
        ".rope.scaling.yarn_beta_fast": 16.0,
    }
    assert scaling(yarn) == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
        "beta_fast": 16.0,
    }
    with pytest.raises(Unsupported, match="'magic'; known: none, linear, yarn, longrope"):
        scaling({".rope.scaling.type": "magic"})
