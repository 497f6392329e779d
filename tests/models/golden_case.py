"""The golden cases: tiny models of every family, and what transformers made of them."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tests.models.dict_source import DictSource

GOLDEN = Path(__file__).parent.parent / "golden" / "models"


@dataclass(frozen=True)
class GoldenCase:
    """One case of ``tests/golden/models``; ``make.py`` there says what is in the files."""

    name: str

    def __str__(self) -> str:
        return self.name

    @cached_property
    def _facts(self) -> dict[str, Any]:
        return json.loads((GOLDEN / f"{self.name}.json").read_text(encoding="utf-8"))

    @property
    def config(self) -> dict[str, Any]:
        """The ``config.json`` as Hugging Face's transformers writes it."""
        return self._facts["config"]

    @property
    def max_len(self) -> int | None:
        """The context the rope is made for, where it is not the config's own."""
        return self._facts["max_len"]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors of the checkpoint."""
        return {name: tuple(shape) for name, shape in self._facts["tensors"].items()}

    @property
    def source(self) -> DictSource:
        """The checkpoint."""
        return DictSource(self.config, self.shapes)

    @cached_property
    def sequences(self) -> tuple["GoldenSequence", "GoldenSequence"]:
        """What Hugging Face made of two prompts."""
        with np.load(GOLDEN / f"{self.name}.npz") as arrays:
            short, long = (
                GoldenSequence(
                    prompt=arrays[f"prompt_{i}"],
                    positions=arrays[f"positions_{i}"],
                    log_probs=arrays[f"log_probs_{i}"],
                    greedy=arrays[f"greedy_{i}"],
                    gaps=arrays[f"gaps_{i}"],
                )
                for i in range(2)
            )
        return short, long


@dataclass(frozen=True, kw_only=True)
class GoldenSequence:
    """A prompt ``[T]``; log-probabilities ``[n, V]`` at ``positions`` ``[n]`` of it; the greedy
    tokens after it, and how far each is above the second best.
    """

    prompt: np.ndarray
    positions: np.ndarray
    log_probs: np.ndarray
    greedy: np.ndarray
    gaps: np.ndarray

    @property
    def tokens(self) -> np.ndarray:
        """The prompt and all greedy tokens but the last, whose successor nobody asked for."""
        return np.concatenate((self.prompt, self.greedy[:-1]))


CASES = tuple(GoldenCase(path.stem) for path in sorted(GOLDEN.glob("*.npz")))
