"""The static choices of a call, checked once."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is compiled into a call. Raises ``ValueError`` for a value that has no meaning."""

    scale: float
    causal: bool = True
    sliding_window: int | None = None
    logit_softcap: float | None = None
    update_kv_cache: bool = True

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"scale = {self.scale} is not finite")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window = {self.sliding_window} is not None or 1 or more")
        cap = self.logit_softcap
        if cap is not None and not (math.isfinite(cap) and cap > 0):
            raise ValueError(f"logit_softcap = {cap} is not None or a finite number above 0")
