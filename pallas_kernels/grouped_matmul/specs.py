"""Named real-world shapes, shared by the tests and the bench."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One product of a mixture of experts: ``top_k`` rows for each of ``num_tokens`` tokens.

    ``routing`` says how rows fall on the ``num_groups`` experts: "random" (each token takes any
    ``top_k``), "one" (all rows on one), "few" (on one in sixteen). ``num_rows`` is the padded
    shape; None: exactly what is needed. ``w_dtype`` is that of scaled weights; None: they are as x.
    """

    num_tokens: int
    top_k: int
    num_groups: int
    depth: int
    columns: int
    routing: str = "random"
    num_rows: int | None = None
    w_dtype: str | None = None

    @property
    def used_rows(self) -> int:
        return self.num_tokens * self.top_k

    @property
    def rows(self) -> int:
        return self.num_rows or self.used_rows

    def group_sizes(self) -> np.ndarray:
        """int32 ``[E]``, the same each time."""
        sizes = np.zeros(self.num_groups, np.int32)
        if self.routing == "one":
            sizes[self.num_groups // 2] = self.used_rows
            return sizes
        step = {"random": 1, "few": 16}[self.routing]
        experts = np.arange(0, self.num_groups, step)
        rng = np.random.default_rng(0)
        taken = rng.choice(experts, size=self.used_rows)
        np.add.at(sizes, taken, 1)
        return sizes

    @property
    def flops(self) -> int:
        return 2 * self.used_rows * self.depth * self.columns

    def num_bytes(self, x_itemsize: int, w_itemsize: int, out_itemsize: int) -> int:
        """Bytes that must be read and written once: rows in use, matrices in use, the result."""
        matrices = int((self.group_sizes() > 0).sum()) * self.depth * self.columns
        x, out = self.used_rows * self.depth, self.rows * self.columns
        return x * x_itemsize + matrices * w_itemsize + out * out_itemsize


_OLMOE: dict[str, Any] = {"num_groups": 64, "top_k": 8, "depth": 2048, "columns": 1024}
_MIXTRAL: dict[str, Any] = {"num_groups": 8, "top_k": 2, "depth": 4096, "columns": 14336}
_QWEN3: dict[str, Any] = {"num_groups": 128, "top_k": 8, "depth": 2048, "columns": 768}
_GPT_OSS: dict[str, Any] = {"num_groups": 32, "top_k": 4, "depth": 2880, "columns": 2880}
# One of eight devices, each with 32 of 256 experts: of eight rows a token about one comes here.
_DEEPSEEK: dict[str, Any] = {"num_groups": 32, "top_k": 1, "depth": 7168, "columns": 2048}

_64_EXPERTS: dict[str, Any] = {**_OLMOE, "num_tokens": 4096, "top_k": 1}

SPECS = {
    "64-experts": Spec(**_64_EXPERTS),
    "64-experts-one-takes-all": Spec(**_64_EXPERTS, routing="one"),
    "64-experts-many-empty": Spec(**_64_EXPERTS, routing="few"),
    "64-experts-int8": Spec(**_64_EXPERTS, w_dtype="int8"),
    "olmoe-decode": Spec(**_OLMOE, num_tokens=64),
    "qwen3-30b-a3b-up": Spec(**_QWEN3, num_tokens=2048),
    "qwen3-30b-a3b-down": Spec(**{**_QWEN3, "depth": 768, "columns": 2048}, num_tokens=2048),
    "qwen3-30b-a3b-decode": Spec(**_QWEN3, num_tokens=64),
}

ACCELERATOR_SPECS = {
    # Of one row a token, reading 64 matrices takes longer than multiplying; of eight it does not.
    "olmoe-prefill": Spec(**_OLMOE, num_tokens=4096),
    "mixtral-8x7b-up": Spec(**_MIXTRAL, num_tokens=2048),
    "mixtral-8x7b-down": Spec(**{**_MIXTRAL, "depth": 14336, "columns": 4096}, num_tokens=2048),
    "mixtral-8x7b-decode": Spec(**_MIXTRAL, num_tokens=64),
    "gpt-oss-20b-decode": Spec(**_GPT_OSS, num_tokens=64),
    "gpt-oss-20b-down": Spec(**_GPT_OSS, num_tokens=2048),
    # The rows of a step are bounded, not known: the shape has twice what comes on average.
    "deepseek-v3-device-up": Spec(**_DEEPSEEK, num_tokens=2048, num_rows=4096),
    "deepseek-v3-device-down": Spec(
        **{**_DEEPSEEK, "depth": 2048, "columns": 7168}, num_tokens=2048, num_rows=4096
    ),
    "deepseek-v3-device-decode": Spec(**_DEEPSEEK, num_tokens=512, num_rows=1024),
}
"""Too slow for a CPU: only the bench on an accelerator and the compilers see them."""
