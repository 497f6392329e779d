"""Named real-world shapes, shared by the tests and the bench."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from pallas_kernels.paging.specs import PagedSpec


@dataclass(frozen=True, kw_only=True)
class Spec(PagedSpec):
    """One call: a model's attention heads, and a batch."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    sliding_window: int | None = None
    logit_softcap: float | None = None
    has_sinks: bool = False

    @property
    def seen(self) -> list[np.ndarray]:
        if self.sliding_window is None:
            return super().seen
        return [np.minimum(seen, self.sliding_window) for seen in super().seen]

    @property
    def flops(self) -> int:
        """Floating point operations of the two products of one layer, masked positions left out."""
        return 4 * self.num_heads * self.head_dim * int(sum(seen.sum() for seen in self.seen))

    def kv_bytes(self, itemsize: int) -> int:
        """Bytes of the keys and values that one layer must read once."""
        positions = sum(
            min(length, new - 1 + (self.sliding_window or length)) for new, length in self.rows
        )
        return 2 * positions * self.num_kv_heads * self.head_dim * itemsize


def _decode(count: int, lo: int, hi: int) -> tuple[tuple[int, int], ...]:
    """``count`` rows of one token with lengths spread evenly over ``lo..hi``, in a mixed order."""
    span = hi - lo + 1
    return tuple((1, lo + (37 * i) % span if count > 1 else (lo + hi) // 2) for i in range(count))


def _spread(count: int, lo: int, hi: int) -> tuple[tuple[int, int], ...]:
    """As ``_decode``, for spans much longer than ``count``."""
    lengths = np.linspace(lo, hi, count, dtype=int)
    # An odd step visits all of a power of two.
    return tuple((1, int(lengths[37 * i % count])) for i in range(count))


_SMOLLM2: dict[str, Any] = {"num_heads": 9, "num_kv_heads": 3, "head_dim": 64, "layers": 30}
_GEMMA3_270M: dict[str, Any] = {"num_heads": 4, "num_kv_heads": 1, "head_dim": 256, "layers": 18}
_LLAMA3_8B: dict[str, Any] = {"num_heads": 32, "num_kv_heads": 8, "head_dim": 128, "layers": 32}
_GPT_OSS: dict[str, Any] = {"num_heads": 64, "num_kv_heads": 8, "head_dim": 64, "layers": 24}
SPECS = {
    "smollm2-decode-1": Spec(**_SMOLLM2, rows=_decode(1, 128, 256)),
    "smollm2-decode-8": Spec(**_SMOLLM2, rows=_decode(8, 128, 256)),
    "smollm2-decode-32": Spec(**_SMOLLM2, rows=_decode(32, 128, 256)),
    "smollm2-decode-128": Spec(**_SMOLLM2, rows=_decode(128, 128, 256)),
    "smollm2-prefill-512": Spec(**_SMOLLM2, rows=((128, 128),) * 4),
    "smollm2-mixed": Spec(
        **_SMOLLM2,
        rows=(*_decode(24, 128, 256), (128, 128), (72, 200), (1, 90)),
        num_slots=32,
        num_tokens=256,
    ),
    "smollm2-one-long": Spec(**_SMOLLM2, rows=((1, 8000), *_decode(7, 64, 128)), max_len=8192),
    "gemma3-270m-local": Spec(
        **_GEMMA3_270M, rows=(*_decode(3, 600, 1000), (40, 700)), max_len=1024, sliding_window=512
    ),
    "llama3-8b-decode": Spec(**_LLAMA3_8B, rows=_decode(4, 400, 500)),
    "gpt-oss-window-sinks": Spec(
        **_GPT_OSS, rows=(*_decode(3, 100, 300), (33, 160)), sliding_window=128, has_sinks=True
    ),
    "gemma2-softcap": Spec(
        num_heads=8,
        num_kv_heads=4,
        head_dim=256,
        layers=26,
        rows=((1, 77), (50, 50), (1, 130)),
        logit_softcap=50.0,
    ),
}

_GPT_OSS_WINDOW: dict[str, Any] = {
    **_GPT_OSS,
    "layers": 4,
    "max_len": 8192,
    "sliding_window": 128,
    "has_sinks": True,
}

WINDOW_SPECS = {
    "gpt-oss-window-at-512": Spec(**_GPT_OSS_WINDOW, rows=((1, 512),) * 8),
    "gpt-oss-window-at-8k": Spec(**_GPT_OSS_WINDOW, rows=((1, 8192),) * 8),
}
"""Tokens far into their contexts, of which the window lets them see little: time must not know how
far. Only the bench runs them; as shapes they are ``gpt-oss-window-sinks``."""

_LLAMA3_8B_LAYER: dict[str, Any] = {**_LLAMA3_8B, "layers": 1, "page_size": 128, "max_len": 32_768}

ACCELERATOR_SPECS = {
    # One layer holds up to 4.8 GB of pages. No result of a layer fits into a cache of the next.
    "llama3-8b-decode-16": Spec(**_LLAMA3_8B_LAYER, rows=_spread(16, 1024, 32_768)),
    "llama3-8b-decode-64": Spec(**_LLAMA3_8B_LAYER, rows=_spread(64, 1024, 32_768)),
    "llama3-8b-decode-256": Spec(**_LLAMA3_8B_LAYER, rows=_spread(256, 1024, 8192)),
    "llama3-8b-decode-64-fp8": Spec(
        **_LLAMA3_8B_LAYER, rows=_spread(64, 1024, 32_768), pages_dtype="float8_e4m3fn"
    ),
    "llama3-8b-prefill-2k": Spec(**_LLAMA3_8B_LAYER, rows=((2048, 2048),)),
    "llama3-8b-prefill-8k": Spec(**_LLAMA3_8B_LAYER, rows=((8192, 8192),)),
    "llama3-8b-prefill-16k": Spec(**_LLAMA3_8B_LAYER, rows=((16_384, 16_384),)),
    "llama3-8b-mixed": Spec(
        **_LLAMA3_8B_LAYER,
        rows=(*_spread(64, 1024, 16_384), (1024, 1024), (960, 8192)),
        num_tokens=2048,
    ),
}
"""Too large for a CPU: only the bench on an accelerator and the compilers see them."""
