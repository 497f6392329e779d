"""One block of keys and values for a few rows of a tile, whose sums are in registers.

A row is a query head of a token.
"""

import math
from dataclasses import dataclass

from llvmlite import ir

from pallas_kernels.native.code import (
    F32,
    I32,
    I64,
    NOTHING,
    POINTER,
    Code,
    all_lanes,
    declare,
    integer,
)
from pallas_kernels.native.machine import VectorUnit
from pallas_kernels.ragged_paged_attention.cpu_softmax import Block, write_weights

MOST_ROWS = 6
"""Rows that are taken at once."""


@dataclass(frozen=True)
class Sizes:
    """What a kernel is written for."""

    group_size: int
    page_size: int
    block: Block
    is_paired: bool

    @property
    def q_stride(self) -> int:
        """Words of 32 bits from a query of a kv head to the next."""
        return self.block.head_dim // (2 if self.is_paired else 1)


def write_add_rows(module: ir.Module, sizes: Sizes) -> dict[int, ir.Function]:
    """By a number of rows, ``add_rows(q, keys, values, tops, totals, sums, firsts, lasts, row,
    start, kv_heads, factor)``.

    It adds a block, whose first position is ``start``, to so many rows of a tile, of which ``row``
    is the first. Addresses are those of the whole tile; ``factor`` is on the logits.
    """
    weights = write_weights(module, sizes.block)
    return {n: _write_add_rows(module, sizes, n, weights) for n in range(1, MOST_ROWS + 1)}


def _write_add_rows(
    module: ir.Module, sizes: Sizes, num_rows: int, weights: ir.Function
) -> ir.Function:
    kinds = (*(POINTER,) * 8, I64, I64, I64, F32)
    function = declare(module, f"add_{num_rows}", NOTHING, *kinds, internal=True)
    function.attributes.add("noinline")
    q, keys, values, tops, totals, sums, firsts, lasts, row, start, kv_heads, factor = function.args
    code = Code.of(function)
    b = code.builder
    block, group = sizes.block, integer(sizes.group_size)
    head_dim, positions = integer(block.head_dim), integer(block.num_positions)
    logits = code.room(ir.ArrayType(F32, num_rows * block.num_positions))
    logits_rows = [code.at(F32, logits, integer(r * block.num_positions)) for r in range(num_rows)]

    def border(borders: ir.Value, row: ir.Value) -> ir.Value:
        """One that a row has, in the block."""
        position = code.load_count(borders, code.divide(row, group))
        place = code.smaller(code.sub(position, start), positions)
        return code.larger_count(integer(0), place)

    rows = [code.add(row, integer(r)) for r in range(num_rows)]
    first, last = border(firsts, rows[0]), border(lasts, rows[-1])
    with b.if_then(code.is_less(first, last)):
        q_rows, sums_rows = (
            [code.at(F32, x, place_of_row(code, sizes, r, kv_heads, size)) for r in rows]
            for x, size in ((q, sizes.q_stride), (sums, block.head_dim))
        )
        _write_product(
            code,
            q_rows,
            keys,
            logits_rows,
            first=integer(0),
            last=integer(sizes.q_stride),
            num_columns=last,
            width=block.num_positions,
            unit=block.unit,
            factor=factor,
            is_paired=sizes.is_paired,
        )
        for r, logits_row, sums_row in zip(rows, logits_rows, sums_rows, strict=True):
            state = [code.at(F32, tops, r), code.at(F32, totals, r), sums_row]
            b.call(weights, [logits_row, border(firsts, r), border(lasts, r), *state])
        _write_product(
            code,
            logits_rows,
            values,
            sums_rows,
            first=first,
            last=last,
            num_columns=head_dim,
            width=block.head_dim,
            unit=block.unit,
        )
    b.ret_void()
    return function


def place_of_row(
    code: Code, sizes: Sizes, row: ir.Value, num_kv_heads: ir.Value, size: int
) -> ir.Value:
    """Where a row of a tile lies, from its first token on; ``size``: of a query head."""
    group = integer(sizes.group_size)
    token, head = code.divide(row, group), code.remainder(row, group)
    heads = code.add(code.mul(token, code.mul(num_kv_heads, group)), head)
    return code.mul(heads, integer(size))


def _write_product(
    code: Code,
    a: list[ir.Value],
    b: ir.Value,
    c: list[ir.Value],
    *,
    first: ir.Value,
    last: ir.Value,
    num_columns: ir.Value,
    width: int,
    unit: VectorUnit,
    factor: ir.Value | None = None,
    is_paired: bool = False,
) -> None:
    """``c = a @ b * factor`` of a few rows by their addresses; without a factor it is added to c.

    Of the numbers ``first <= i < last`` of a row of a, and of whole vectors up to column
    ``num_columns`` of c; b and c have rows of ``width``. ``is_paired``: a and b are pairs of
    bfloat16, which count as one number.
    """
    lanes = math.gcd(width, unit.lanes)
    kind = ir.VectorType(F32, lanes)
    taken = ir.VectorType(I32, lanes) if is_paired else kind

    def multiply(total: ir.Value, a_ri: ir.Value, b_iv: ir.Value) -> ir.Value:
        return code.add_dot(total, a_ri, b_iv) if is_paired else code.fma(a_ri, b_iv, total)

    most_vectors = (unit.num_registers - 4) // (MOST_ROWS + 1)
    vectors = max(n for n in range(1, most_vectors + 1) if width // lanes % n == 0)

    def add_columns(column: ir.Value) -> None:
        def columns_of(row: ir.Value) -> list[ir.Value]:
            places = (code.add(column, integer(v * lanes)) for v in range(vectors))
            return [code.at(F32, row, place) for place in places]

        def add_number(i: ir.Value, *sums: ir.Value) -> list[ir.Value]:
            b_row = code.at(F32, b, code.mul(i, integer(width)))
            b_i = [code.load(taken, place, align=4) for place in columns_of(b_row)]
            added = []
            for r, a_row in enumerate(a):
                a_ri = code.load(taken.element, code.at(F32, a_row, i), align=4)
                a_ri = code.spread(a_ri, lanes)
                added += [multiply(sums[r * vectors + v], a_ri, b_i[v]) for v in range(vectors)]
            return added

        places = [place for c_row in c for place in columns_of(c_row)]
        zero = all_lanes(0.0, kind)
        before = [zero if factor else code.load(kind, p, align=4) for p in places]
        after = code.repeat(first, last, before, add_number)
        for total, place in zip(after, places, strict=True):
            if factor:
                total = code.builder.fmul(total, code.spread(factor, lanes))
            code.builder.store(total, place, align=4)

    code.repeat_plainly(integer(0), num_columns, add_columns, step=integer(vectors * lanes))
