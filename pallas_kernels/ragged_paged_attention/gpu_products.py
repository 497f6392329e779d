"""The two products of the Hopper kernel, on the tensor cores (WGMMA), and what prepares their
operands.

An operand is a list of parts whose sum is meant (``Operands``). Of two parts, the product of the
small ones is left out: it is below what float32 keeps.
"""

from typing import Any

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from pallas_kernels.ragged_paged_attention.gpu_plan import WARPGROUP_ROWS, Operands, Plan

CONVERTED_COLUMNS = 32
"""Columns that are in registers at a time while they are converted, where a head has more."""

LOOPED_COLUMNS = 128
"""Of float32 keys with twice as many columns a loop converts so many at a time. Their sums leave
few registers, and code without a loop takes more of them for addresses than there are."""


def split(operands: Operands, x: jax.Array) -> list[jax.Array]:
    """``x`` as operands; the last part is rounded."""
    parts = [x.astype(operands.dtype)]
    for _ in range(1, operands.parts):
        x = x - parts[-1].astype(jnp.float32)
        parts.append(x.astype(operands.dtype))
    return parts


Held = tuple[jax.Array, jax.Array]
"""``first <= row < last``: the rows of a block that may be seen. All others may hold NaN."""


def convert(plan: Plan, stored: Any, matrix: list[Any], held: Held | None = None) -> None:
    """Puts a block ``[block, H]`` as the pages store it into the parts of ``matrix``; zero where it
    is not ``held``."""
    step = CONVERTED_COLUMNS if plan.head_dim % CONVERTED_COLUMNS == 0 else plan.head_dim

    def convert_from(start: int | jax.Array) -> None:
        columns = pl.ds(start, step)
        x = plan.in_stored_layout(stored.at[:, columns][...])
        if jnp.issubdtype(x.dtype, jnp.floating):  # Int8 knows no NaN.
            x = x.astype(jnp.float32)  # Hopper has no instruction from float8 to bfloat16.
            x = x if held is None else _only_held(plan.in_stored_layout, x, held)
        for part, rounded in zip(matrix, split(plan.operands, x), strict=True):
            part.at[:, columns][...] = rounded

    plgpu.commit_smem()  # All warps have done with what was there.
    if held is None and plan.operands.parts > 1 and plan.head_dim == 2 * LOOPED_COLUMNS:

        @pl.loop(0, 2)
        def _(half: jax.Array) -> None:
            for start in range(0, LOOPED_COLUMNS, step):
                convert_from(half * LOOPED_COLUMNS + start)

    else:
        for start in range(0, plan.head_dim, step):
            convert_from(start)
    plgpu.commit_smem()


def clean(plan: Plan, values: Any, held: Held) -> None:
    """Makes values that nobody may see zero: a weight of zero times NaN would be NaN."""
    values[...] = _only_held(plan.in_tile_layout, plan.in_tile_layout(values[...]), held)
    plgpu.commit_smem()


def _only_held(in_layout: Any, x: jax.Array, held: Held) -> jax.Array:
    first, last = held
    row = in_layout(jax.lax.broadcasted_iota(jnp.int32, x.shape, 0))
    return jnp.where((row >= first) & (row < last), x, jnp.zeros_like(x))


def logits_of(plan: Plan, q: list[Any], keys: list[Any]) -> jax.Array:
    """``q @ keys.T`` in float32, both from shared memory.

    The interpreter's WGMMA takes no transposed operand: there it is a plain product.
    """
    pairs = _pairs(q, keys)
    if plan.interpret:
        dimensions = (((1,), (1,)), ((), ()))
        sums = jnp.zeros((WARPGROUP_ROWS, plan.tiles.block), jnp.float32)
        for a, b in pairs:
            sums += jax.lax.dot_general(
                a[...], b[...], dimensions, preferred_element_type=jnp.float32
            )
        return sums

    def multiply(accumulator: Any) -> Any:
        for a, b in pairs:
            plgpu.wgmma(accumulator, a, b.transpose((1, 0)))
        return accumulator[...]

    shape = (WARPGROUP_ROWS, plan.tiles.block)
    return pl.run_scoped(multiply, plgpu.ACC(shape, jnp.float32))


def add_product(
    plan: Plan, sums: jax.Array, weights: list[jax.Array], values: list[Any]
) -> jax.Array:
    """``sums + weights @ values`` in float32, in the registers that hold ``sums``.

    The interpreter's WGMMA takes nothing from registers: there it is a plain product.
    """
    pairs = _pairs(weights, values)
    if plan.interpret:
        for a, b in pairs:
            sums += jnp.dot(a, b[...], preferred_element_type=jnp.float32)
        return sums

    def multiply(accumulator: Any) -> None:
        for a, b in pairs:
            plgpu.wgmma(accumulator, a, b)

    return pl.run_state(multiply)(plgpu.ACC.init(sums))


def _pairs(a: list[Any], b: list[Any]) -> list[tuple[Any, Any]]:
    """The parts to multiply, the smallest products first."""
    pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if i + j < max(len(a), len(b))]
    return [(a[i], b[j]) for i, j in sorted(pairs, key=sum, reverse=True)]
