"""Asks Hugging Face's transformers for the log-probabilities of a tiny model of every family.

Run from the repository's root, with the extra ``golden`` installed:

    python -m tests.golden.models.make [case ...]

Writes ``<case>.json`` (the config as transformers writes it, names and shapes of the checkpoint's
tensors) and ``<case>.npz`` (prompts, log-probabilities, greedy continuations). The weights are not
stored: they follow from the names (seeded.py). Everything is float32 on the CPU.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.utils import logging

from tests.golden.models.cases import CASES, SHAPE
from tests.golden.models.seeded import seeded_tensor

HERE = Path(__file__).parent
NUM_GREEDY = 16
#: A gap between the two best logits that no float32 implementation bridges by rounding.
LEAST_GAP = 2e-3
#: Fields of GPT-2 by other names.
GPT2_NAMES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}


def main(names: list[str]) -> None:
    torch.set_grad_enabled(False)
    logging.disable_progress_bar()
    for name in names or CASES:
        model_type, differences, beside = CASES[name]
        make(name, hf_config(model_type, differences), **beside)


def hf_config(model_type: str, differences: dict[str, Any]) -> AutoConfig:
    if "text_config" in differences:
        return AutoConfig.for_model(model_type, **differences)
    fields = {**SHAPE, **differences}
    if model_type in ("gpt2", "gpt_neox"):
        del fields["num_key_value_heads"]
    if model_type == "gpt2":
        del fields["intermediate_size"]
        fields = {GPT2_NAMES.get(field, field): value for field, value in fields.items()}
    return AutoConfig.for_model(model_type, **fields)


def make(
    name: str,
    config: AutoConfig,
    max_len: int | None = None,
    lengths: tuple[int, int] = (7, 40),
    added: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
) -> None:
    model, written_config, shapes = seeded_model(config, added)
    vocab_size = config.get_text_config().vocab_size
    case = {"max_len": max_len, "config": written_config, "tensors": shapes}
    arrays: dict[str, np.ndarray] = {}
    if max_len is not None:
        log_probs(model, np.zeros(max_len, np.int64))  # stretches a dynamic rope to this length
    for i, length in enumerate(lengths):
        prompt, greedy, gaps = clear_prompt(model, vocab_size, length)
        positions = np.arange(length) if length < 16 else np.arange(3, length, 4)
        arrays |= {
            f"prompt_{i}": prompt.astype(np.int32),
            f"positions_{i}": positions.astype(np.int32),
            f"log_probs_{i}": log_probs(model, prompt)[positions],
            f"greedy_{i}": greedy,
            f"gaps_{i}": gaps,
        }
    (HERE / f"{name}.json").write_text(json.dumps(case) + "\n", encoding="utf-8")
    np.savez_compressed(HERE / f"{name}.npz", **arrays)
    print(name, "least gap", min(arrays["gaps_0"].min(), arrays["gaps_1"].min()))


def clear_prompt(
    model: torch.nn.Module, vocab_size: int, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A random prompt whose greedy continuation has no close calls, that continuation, its gaps."""
    for seed in range(100):
        prompt = np.random.default_rng(1000 * length + seed).integers(3, vocab_size, length)
        greedy, gaps = continuation(model, prompt)
        if gaps.min() > LEAST_GAP:
            return prompt, greedy, gaps
    raise RuntimeError(f"each of 100 prompts has a gap below {LEAST_GAP}")


def seeded_model(
    config: AutoConfig, added: Mapping[str, tuple[int, ...]]
) -> tuple[torch.nn.Module, dict[str, Any], dict[str, list]]:
    """The model through its own files: what it writes, filled with our weights, and read again."""
    is_multimodal = config.get_text_config() is not config
    auto = AutoModelForImageTextToText if is_multimodal else AutoModelForCausalLM
    with tempfile.TemporaryDirectory() as folder:
        auto.from_config(config).save_pretrained(folder)
        file = Path(folder) / "model.safetensors"
        with safe_open(file, "np") as stored:
            shapes = {key: stored.get_slice(key).get_shape() for key in sorted(stored.keys())}
        shapes |= {key: list(shape) for key, shape in added.items()}
        weights = {key: seeded_tensor(key, tuple(shape)) for key, shape in shapes.items()}
        save_file(weights, file, metadata={"format": "pt"})
        written = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        model = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval(), written, shapes


def log_probs(model: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
    """Float32 ``[T, V]``; no cache, so that every call is one plain forward pass."""
    logits = model(input_ids=torch.tensor(tokens[None]), use_cache=False).logits[0]
    return torch.log_softmax(logits, dim=-1).numpy()


def continuation(model: torch.nn.Module, prompt: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The greedy tokens, and how far the best logit is above the next."""
    tokens, gaps = list(prompt), []
    for _ in range(NUM_GREEDY):
        last = log_probs(model, np.asarray(tokens))[-1]
        second, first = np.sort(last)[-2:]
        tokens.append(int(last.argmax()))
        gaps.append(first - second)
    return np.asarray(tokens[len(prompt) :], np.int32), np.asarray(gaps, np.float32)


if __name__ == "__main__":
    main(sys.argv[1:])
