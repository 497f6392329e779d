"""What the named shapes of both attentions share: the rows of a batch, and the pages they need."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class PagedSpec:
    """The rows of a batch as ``(new tokens, length after)``, and the kind of their pages.

    ``num_slots`` and ``num_tokens`` are the padded shapes; None: exactly what the rows need.
    """

    rows: tuple[tuple[int, int], ...]
    page_size: int = 64
    pages_dtype: str = "bfloat16"
    max_len: int = 512
    num_slots: int | None = None
    num_tokens: int | None = None
    layers: int = 1

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
        return [np.arange(length - new, length) + 1 for new, length in self.rows]

    @property
    def is_of_one_kind(self) -> bool:
        """Whether a program for decode rows only, or for whole prompts only, serves it."""
        return all(new == 1 for new, _ in self.rows) or all(
            new > 1 and new == length for new, length in self.rows
        )

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
