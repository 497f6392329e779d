"""The rotary part of a config: base, rotated share of the head, scaling.

Linear and YaRN scaling are metadata. Llama 3 and LongRoPE scaling are tensors of divisors, one for
each frequency, and for Llama 3 the parameters behind the divisors are found again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxinfer.checkpoint.gguf_keys import Keys
from jaxinfer.errors import CorruptCheckpoint, Unsupported

#: What every published Llama 3 model has: low and high frequency factor, original context.
_LLAMA3 = (1.0, 4.0, 8192)

#: Reads one small float32 tensor of the file by its GGUF name.
ReadVector = Callable[[str], np.ndarray]


def rope_config(keys: Keys) -> dict[str, Any]:
    """``rope_theta``, ``partial_rotary_factor`` and ``rope_scaling``, as far as metadata tells."""
    config: dict[str, Any] = {"rope_theta": keys.positive("rope.freq_base", 10000.0)}
    head_dim = keys.count("embedding_length") // keys.count("attention.head_count")
    head_dim = keys.count("attention.key_length", head_dim)
    rotary_dim = keys.count("rope.dimension_count", head_dim)
    if rotary_dim != head_dim:
        config["partial_rotary_factor"] = rotary_dim / head_dim
    config["rope_scaling"] = _scaling(keys)
    return config


def _scaling(keys: Keys) -> dict[str, Any] | None:
    kind = keys.text("rope.scaling.type", "linear" if keys.has("rope.scale_linear") else "none")
    if kind in ("none", "longrope"):
        return None  # the divisors of longrope are tensors
    if kind == "linear":
        old_name = keys.positive("rope.scale_linear", 1.0)
        return {"rope_type": "linear", "factor": keys.positive("rope.scaling.factor", old_name)}
    if kind != "yarn":
        raise Unsupported(
            f"{keys.path}: rope scaling {kind!r}; known: none, linear, yarn, longrope"
        )
    scaling = {
        "rope_type": "yarn",
        "factor": keys.positive("rope.scaling.factor"),
        "original_max_position_embeddings": keys.count("rope.scaling.original_context_length"),
    }
    optional = {
        "rope.scaling.attn_factor": "attention_factor",
        "rope.scaling.yarn_beta_fast": "beta_fast",
        "rope.scaling.yarn_beta_slow": "beta_slow",
    }
    return scaling | {name: keys.number(key) for key, name in optional.items() if keys.has(key)}


def rope_scaling_of_tensors(
    config: dict[str, Any], keys: Keys, read: ReadVector
) -> dict[str, Any] | None:
    """The scaling that the tensors of divisors describe; None where there are none."""
    if "rope_factors_long.weight" in keys.tensors:
        return {
            "rope_type": "longrope",
            "short_factor": _divisors(keys, read, "rope_factors_short.weight").tolist(),
            "long_factor": _divisors(keys, read, "rope_factors_long.weight").tolist(),
        }
    if "rope_freqs.weight" not in keys.tensors:
        return None
    divisors = _divisors(keys, read, "rope_freqs.weight")
    if (divisors == 1).all():
        return None
    frequencies = config["rope_theta"] ** -(np.arange(len(divisors)) / len(divisors))
    return _llama3(keys, divisors, frequencies)


def _divisors(keys: Keys, read: ReadVector, name: str) -> np.ndarray:
    tensor = keys.tensor(name)
    if len(tensor.shape) != 1 or tensor.block_format.name != "F32":
        raise CorruptCheckpoint(f"{keys.path}: {name} is not a vector of float32")
    divisors = read(name).astype(np.float64)
    if not (np.isfinite(divisors).all() and (divisors > 0).all()):
        raise CorruptCheckpoint(f"{keys.path}: {name} has numbers that are not above 0")
    return divisors


def _llama3(keys: Keys, divisors: np.ndarray, frequencies: np.ndarray) -> dict[str, Any]:
    factor = float(str(np.float32(divisors.max())))
    for low, high, length in (_LLAMA3, _fitted(divisors, frequencies, factor)):
        expected = llama3_divisors(frequencies, factor, low, high, length)
        if np.allclose(divisors, expected, rtol=1e-4):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": length,
            }
    raise Unsupported(
        f"{keys.path}: the divisors of rope_freqs.weight do not follow Llama 3's rule"
    )


def llama3_divisors(
    frequencies: np.ndarray, factor: float, low: float, high: float, length: int
) -> np.ndarray:
    """What Llama 3.1 divides each frequency by: 1 for high, ``factor`` for low, a ramp between."""
    smooth = np.clip((length * frequencies / (2 * np.pi) - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)


def _fitted(
    divisors: np.ndarray, frequencies: np.ndarray, factor: float
) -> tuple[float, float, int]:
    """Parameters of the ramp through the divisors between 1 and ``factor``.

    Only the ratios of low, high and length matter, so low is 1. Needs two divisors on the ramp;
    gives the usual parameters where there are fewer.
    """
    on_ramp = np.flatnonzero((divisors > 1.0001) & (divisors < 0.9999 * factor))
    if len(on_ramp) < 2:
        return _LLAMA3
    ends = on_ramp[[0, -1]]
    inverse_wavelengths = frequencies[ends] / (2 * np.pi)
    smooth = (1 / divisors[ends] - 1 / factor) / (1 - 1 / factor)
    run, rise = np.diff(inverse_wavelengths)[0], np.diff(smooth)[0]
    intercept = smooth[0] * run - rise * inverse_wavelengths[0]  # times run
    if run == 0 or intercept == 0:
        return _LLAMA3
    return 1.0, round(float(1 - run / intercept), 4), round(float(-rise / intercept))
