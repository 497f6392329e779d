"""Named real-world shapes, shared by the tests and the bench."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One call: a model's attention heads and the rows of a batch as ``(new tokens, length
    after)``.

    ``num_slots`` and ``num_tokens`` are the padded shapes; None: exactly what the rows need.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rows: tuple[tuple[int, int], ...]
    page_size: int = 64
    max_len: int = 512
    num_slots: int | None = None
    num_tokens: int | None = None
    sliding_window: int | None = None
    logit_softcap: float | None = None
    has_sinks: bool = False
    layers: int = 1
    pages_dtype: str = "bfloat16"

    @property
    def slots(self) -> int:
        return self.num_slots or len(self.rows)

    @property
    def tokens(self) -> int:
        return self.num_tokens or sum(new for new, _ in self.rows)

    @property
    def pages_per_row(self) -> int:
        return -(-self.max_len // self.page_size)

    @property
    def num_pages(self) -> int:
        """Pages that the rows own, and page 0, which nobody owns."""
        return 1 + sum(-(-length // self.page_size) for _, length in self.rows)

    @property
    def seen(self) -> list[np.ndarray]:
        """For each row, how many positions each of its new tokens sees."""
        ends = [np.arange(length - new, length) + 1 for new, length in self.rows]
        return (
            ends
            if self.sliding_window is None
            else [np.minimum(e, self.sliding_window) for e in ends]
        )

    @property
    def flops(self) -> int:
        """Floating point operations of the two products of one layer, masked positions left out."""
        return 4 * self.num_heads * self.head_dim * int(sum(seen.sum() for seen in self.seen))

    @property
    def is_of_one_kind(self) -> bool:
        """Whether a program for decode rows only, or for whole prompts only, serves it."""
        return all(new == 1 for new, _ in self.rows) or all(
            new > 1 and new == length for new, length in self.rows
        )

    def kv_bytes(self, itemsize: int) -> int:
        """Bytes of the keys and values that one layer must read once."""
        positions = sum(
            min(length, new - 1 + (self.sliding_window or length)) for new, length in self.rows
        )
        return 2 * positions * self.num_kv_heads * self.head_dim * itemsize

    def describe(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The batch's int32 arrays by argument name; pages are dealt out in random order."""
        kv_lens_S = np.zeros(self.slots, np.int32)
        cu_q_lens_S1 = np.zeros(self.slots + 1, np.int32)
        page_table_SM = np.zeros((self.slots, self.pages_per_row), np.int32)
        ids = list(rng.permutation(self.num_pages - 1) + 1)
        for row, (new, length) in enumerate(self.rows):
            kv_lens_S[row] = length
            cu_q_lens_S1[row + 1 :] += new
            for page in range(-(-length // self.page_size)):
                page_table_SM[row, page] = ids.pop()
        num_rows = len(self.rows)
        num_decode = next((i for i, (new, _) in enumerate(self.rows) if new > 1), num_rows)
        num_prefill = num_decode
        while num_prefill < num_rows and len(set(self.rows[num_prefill])) == 1:
            num_prefill += 1
        return {
            "kv_lens_S": kv_lens_S,
            "page_table_SM": page_table_SM,
            "cu_q_lens_S1": cu_q_lens_S1,
            "distribution_3": np.array([num_decode, num_prefill, num_rows], np.int32),
        }


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
