"""The parts of ``xla`` as machine code, against the meaning, and what is left to plain XLA."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import native, ragged_paged_attention
from pallas_kernels.ragged_paged_attention import cpu, xla_items, xla_tiles

needs_code = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))

ROWS = [(1, 77), (1, 1), (1, 0), (1, 64), (1, 96), (1, 33)]
LONG_ROWS = [(77, 77), (1, 80), (0, 0), (2, 2), (33, 96), (7, 70)]
SINKS = (0.5, -1.0, 3.0, 0.0, 1.0, 2.0)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The forms that calls took, as they were traced."""
    names: list[str] = []

    def watch(form: Any, function: str) -> None:
        attend = getattr(form, function)

        def spy(*args: Any) -> jax.Array:
            names.append(form.__name__.rpartition(".")[2])
            return attend(*args)

        monkeypatch.setattr(form, function, spy)

    for form, function in (
        (cpu, "attend_single_rows"),
        (cpu, "attend_tiles"),
        (xla_items, "attend_single_rows"),
        (xla_tiles, "attend_tiles"),
    ):
        watch(form, function)
    return names


def attend_anew(implementation: str, batch: Any, **options: Any) -> np.ndarray:
    """Traced for this call."""

    def call(*arguments: jax.Array) -> jax.Array:
        given = {"scale": 0.25, "implementation": implementation, **options}
        return ragged_paged_attention(*arguments, **given)[0]

    return np.asarray(jax.jit(call)(*batch.arguments))


both_kinds = pytest.mark.parametrize("rows", [ROWS, LONG_ROWS], ids=["single", "long"])


@needs_code
@both_kinds
@pytest.mark.parametrize(
    "sizes", [(3, 3, 64, 64), (1, 1, 64, 8), (2, 5, 80, 16), (1, 32, 20, 256), (4, 1, 256, 32)]
)
def test_heads_and_pages_of_any_size(
    sizes: tuple[int, int, int, int], rows: list, batch_of, assert_close, taken
) -> None:
    num_kv_heads, group_size, head_dim, page_size = sizes
    batch = batch_of(
        rows,
        num_tokens=128,
        num_kv_heads=num_kv_heads,
        group_size=group_size,
        head_dim=head_dim,
        page_size=page_size,
        pages_per_row=96 // page_size + 1,
        pages_dtype="bfloat16",
    )
    out = attend_anew("xla", batch)
    assert set(taken) == {"cpu"}
    assert_close(out, attend_anew("reference", batch), "float32")


@needs_code
@pytest.mark.parametrize("has_pairs", [True, False], ids=["pairs", "float32"])
@pytest.mark.parametrize("sizes", [(3, 64, 64), (1, 80, 16), (8, 128, 8), (5, 20, 256)])
def test_bfloat16_queries_with_and_without_products_of_pairs(
    sizes: tuple[int, int, int],
    has_pairs: bool,
    batch_of,
    assert_close,
    taken,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from pallas_kernels.native.machine import vector_unit
    from pallas_kernels.ragged_paged_attention import cpu_tile_kernel

    unit = vector_unit()
    assert unit is not None
    if has_pairs and not unit.has_bfloat16:
        pytest.skip("this CPU multiplies no bfloat16")
    plain = replace(unit, has_bfloat16=has_pairs)
    monkeypatch.setattr(cpu_tile_kernel, "vector_unit", lambda: plain)
    group_size, head_dim, page_size = sizes
    batch = batch_of(
        LONG_ROWS,
        num_tokens=128,
        group_size=group_size,
        head_dim=head_dim,
        page_size=page_size,
        pages_per_row=96 // page_size + 1,
        pages_dtype="bfloat16",
        q_dtype="bfloat16",
    )
    options = {"scale": 0.3, "k_scale_K": jnp.asarray([0.5, 2.0])}
    options |= {"v_scale_K": jnp.asarray([1.0, 3.0])}
    out = attend_anew("xla", batch, **options)
    assert set(taken) == {"cpu"}
    assert_close(out, attend_anew("reference", batch, **options), "bfloat16")


@needs_code
@both_kinds
@pytest.mark.parametrize(
    "options",
    [
        {"sliding_window": 5},
        {"sliding_window": 40},
        {"sinks_N": SINKS},
        {"sinks_N": (float("nan"), float("-inf"), 0.5, 1e30, -1e30, 0.0)},
        {"scale": 3.0},
        {"causal": False},
        {"causal": False, "sliding_window": 40},
    ],
    ids=str,
)
def test_every_option(options: dict, rows: list, batch_of, assert_close, taken) -> None:
    options = {name: jnp.asarray(x) if name == "sinks_N" else x for name, x in options.items()}
    batch = batch_of(rows, num_tokens=128, pages_dtype="bfloat16")
    out = attend_anew("xla", batch, **options)
    assert set(taken) == {"cpu"}
    assert_close(out, attend_anew("reference", batch, **options), "float32")


@needs_code
def test_a_row_comes_out_the_same_bit_for_bit_alone_and_among_others(batch_of) -> None:
    together = attend_anew("xla", batch_of(ROWS, pages_dtype="bfloat16"))
    alone = attend_anew("xla", batch_of([*((1, 0),) * 4, ROWS[4]], pages_dtype="bfloat16"))
    np.testing.assert_array_equal(alone[4], together[4])
    assert not np.any(alone[:4])


@needs_code
@pytest.mark.parametrize("options", [{}, {"sliding_window": 40}], ids=str)
def test_a_token_comes_out_the_same_bit_for_bit_whatever_is_computed_with_it(
    options: dict, batch_of, taken
) -> None:
    """With all of its row, and with parts of it."""

    def last_token(num_new: int) -> np.ndarray:
        batch = batch_of([(num_new, 90)], pages_dtype="bfloat16", num_tokens=96)
        return attend_anew("xla", batch, **options)[num_new - 1]

    whole = last_token(90)
    for num_new in (2, 37):
        np.testing.assert_array_equal(last_token(num_new), whole)
    assert set(taken) == {"cpu"}


@needs_code
@both_kinds
def test_narrower_vectors(
    rows: list, batch_of, assert_close, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pallas_kernels.native.machine import VectorUnit
    from pallas_kernels.ragged_paged_attention import cpu_kernel, cpu_tile_kernel

    unit = VectorUnit(8, 16, has_bfloat16=False)
    for kernel in (cpu_kernel, cpu_tile_kernel):
        monkeypatch.setattr(kernel, "vector_unit", lambda: unit)
    batch = batch_of(rows, num_tokens=128, pages_dtype="bfloat16", head_dim=48, page_size=32)
    assert_close(attend_anew("xla", batch), attend_anew("reference", batch), "float32")


@needs_code
@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ({"pages_dtype": "float32"}, {}),
        ({"pages_dtype": "bfloat16"}, {"logit_softcap": 2.0}),
        ({"pages_dtype": "bfloat16", "head_dim": 18}, {}),
        ({"pages_dtype": "bfloat16", "group_size": 260, "page_size": 256, "pages_per_row": 1}, {}),
    ],
    ids=str,
)
def test_what_the_code_is_not_written_for_is_left_to_xla(
    sizes: dict, options: dict, batch_of, assert_close, taken
) -> None:
    batch = batch_of(ROWS, **sizes)
    out = attend_anew("xla", batch, **options)
    assert set(taken) == {"xla_items", "xla_tiles"}
    assert_close(out, attend_anew("reference", batch, **options), "float32")


def test_without_the_package_all_is_left_to_xla(
    monkeypatch: pytest.MonkeyPatch, batch_of, assert_close, taken
) -> None:
    monkeypatch.setattr(native, "missing", lambda: "llvmlite is not installed")
    batch = batch_of(ROWS, pages_dtype="bfloat16")
    out = attend_anew("xla", batch)
    assert set(taken) == {"xla_items", "xla_tiles"}
    assert_close(out, attend_anew("reference", batch), "float32")
