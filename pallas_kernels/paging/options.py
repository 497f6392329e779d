"""The static choices of a call, checked once."""

import math
from dataclasses import dataclass

import numpy as np

LARGEST_WINDOW = 2**30
"""Differences of two positions and a window stay in int32."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is compiled into a call. Raises ``ValueError`` for a value that has no meaning."""

    scale: float
    causal: bool = True
    sliding_window: int | None = None
    logit_softcap: float | None = None
    update_kv_cache: bool = True

    def __post_init__(self) -> None:
        # As the float32 that it becomes: larger numbers are infinite there, and small ones 0.
        if not math.isfinite(_float32(self.scale)):
            raise ValueError(f"scale = {self.scale} is not finite in float32")
        window, cap = self.sliding_window, self.logit_softcap
        is_whole = isinstance(window, int | np.integer)
        if window is not None and not (is_whole and 1 <= window <= LARGEST_WINDOW):
            raise ValueError(
                f"sliding_window = {window} is not None or a whole number from 1 to"
                f" {LARGEST_WINDOW}"
            )
        if cap is not None and not (math.isfinite(_float32(cap)) and _float32(cap) > 0):
            raise ValueError(
                f"logit_softcap = {cap} is not None or a finite number above 0, in float32"
            )


def _float32(x: float) -> float:
    with np.errstate(over="ignore", under="ignore"):
        return float(np.float32(x))
