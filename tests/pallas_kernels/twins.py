"""Small twins of the named shapes: what a kernel is made for stays, what takes time shrinks."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pallas_kernels.grouped_matmul.specs import Spec as GroupedSpec
from pallas_kernels.latent_attention.specs import Spec as LatentSpec
from pallas_kernels.paging.specs import PagedSpec
from pallas_kernels.ragged_paged_attention.specs import Spec as RaggedSpec

FEW_KV_HEADS = 2
HEADS_FOR_ONE = 8
DECODE, PREFILL, MIXED = "decode", "prefill", "mixed"


def kind_of(rows: tuple[tuple[int, int], ...]) -> str:
    """What a program for these rows is made for."""
    if all(new == 1 for new, _ in rows):
        return DECODE
    return PREFILL if all(new == length for new, length in rows) else MIXED


def small_rows(kind: str, longest: int) -> dict[str, Any]:
    """Few and short rows of the same kind, of which one is long, and one or two slots idle."""
    rows = {
        DECODE: ((1, longest), (1, 0), (1, 1), (1, 64)),
        PREFILL: ((20, 20), (1, 0), (9, 9), (1, 1)),
        MIXED: ((1, longest), (1, 0), (20, 20), (5, 70)),
    }[kind]
    return {"rows": rows, "num_slots": 5, "num_tokens": 32, "max_len": longest}


def small_ragged(spec: RaggedSpec, positions: int) -> RaggedSpec:
    """Query heads of a kv head, head dim, page size, dtype, window, softcap and sinks are real.

    The longest row is beyond the window, or beyond ``positions``: those of a block of the kernel.
    """
    kv_heads = min(spec.num_kv_heads, FEW_KV_HEADS)
    return replace(
        spec,
        num_heads=spec.num_heads // spec.num_kv_heads * kv_heads,
        num_kv_heads=kv_heads,
        layers=1,
        **small_rows(kind_of(spec.rows), max(spec.sliding_window or 0, positions) + 77),
    )


def small_latent(spec: LatentSpec, positions: int) -> LatentSpec:
    """Rank, rotary part, page size and dtype are real, and one of eight heads."""
    heads = spec.num_heads // HEADS_FOR_ONE
    rows = small_rows(kind_of(spec.rows), positions + 77)
    return replace(spec, num_heads=heads, layers=1, **rows)


def small_grouped(spec: GroupedSpec) -> GroupedSpec:
    """Groups, rows of a token, routing, padding and dtype are real; one side is longer."""
    depth, columns = (128, 256) if spec.depth < spec.columns else (256, 128)
    tokens = 64 // spec.top_k
    rows = spec.num_rows and spec.num_rows * tokens // spec.num_tokens
    return replace(spec, num_tokens=tokens, depth=depth, columns=columns, num_rows=rows)


def zones_of(spec: PagedSpec) -> np.ndarray:
    """The distribution, which a program of one kind knows when it is compiled."""
    num = len(spec.rows)
    kind = kind_of(spec.rows)
    num_decode = num if kind == DECODE else 0
    return np.array([num_decode, num if kind == PREFILL else num_decode, num], np.int32)


def names_by_twin(twins: Mapping[str, Any]) -> dict[Any, str]:
    """Twins that come out equal are one, by the first of their names."""
    return {twin: name for name, twin in reversed(list(twins.items()))}


def one_for_each_program(twins: Mapping[str, Any], in_ci: set[str]) -> list[Any]:
    """Parameters; whoever asks for slow tests gets those that are not ``in_ci``, too."""
    ci_first = {name: twins[name] for name in sorted(twins, key=lambda name: name not in in_ci)}
    names = names_by_twin(ci_first)
    assert set(names.values()) >= in_ci
    return [
        pytest.param(twin, id=name, marks=() if name in in_ci else pytest.mark.slow)
        for twin, name in names.items()
    ]
