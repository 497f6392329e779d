"""The dimension key: one letter an axis, the same in annotations, einsums and name suffixes.

    T  tokens of a step, all rows laid end to end      S  slots (rows of a step)
    P  pages of a pool          p  tokens a page        M  pages a sequence (width of a page table)
    D  model width              N  query heads          K  kv heads        G  = N / K
    H  head dim                 F  mlp width            V  vocabulary      W  = ceil(V / 32) words
    E  experts                  C  experts a token goes to                 A  = T * C
    R  latent rank              Z  recurrent state
    L  layers                   B  batch                I  width of a layer's own input
    U  residual streams

``q_TNH`` is an array of shape ``[T, N, H]``; ``kv_lens_S`` one length a row.
"""

from collections.abc import Sequence
from typing import Any

Shape = tuple[int, ...]
#: A pytree of arrays: parameters, pages, states.
Tree = Any


def round_up(value: int, multiple: int) -> int:
    """The least multiple of ``multiple`` that is not below ``value``."""
    return -(-value // multiple) * multiple


def next_in(value: int, ladder: Sequence[int]) -> int:
    """The least entry of an ascending ladder that is not below ``value``.

    Raises:
        ValueError: when ``value`` is above the last entry.
    """
    for step in ladder:
        if step >= value:
            return step
    raise ValueError(f"{value} is above the ladder's last step {ladder[-1]}")
