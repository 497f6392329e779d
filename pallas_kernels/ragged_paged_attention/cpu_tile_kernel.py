"""The machine code for rows with several new tokens, cut into tiles of queries.

A part is one kv head of one tile. It goes through the blocks of positions that a query of the tile
sees (FlashAttention-2, arXiv 2307.08691): keys and values become float32 once, then a few queries
at a time are multiplied with them, their sums in registers.
"""

import math
from dataclasses import dataclass
from functools import partial

from llvmlite import ir

from pallas_kernels.native.buffers import Buffer
from pallas_kernels.native.code import (
    F32,
    I16,
    I32,
    I64,
    NOTHING,
    POINTER,
    Code,
    all_lanes,
    declare,
    integer,
)
from pallas_kernels.native.handler import declare_kernel, write_handler
from pallas_kernels.native.machine import VectorUnit, register, vector_unit
from pallas_kernels.ragged_paged_attention.cpu import MOST_POSITIONS, MOST_QUERIES
from pallas_kernels.ragged_paged_attention.cpu_softmax import (
    Block,
    write_begin,
    write_finish,
    write_weights,
)

_NUM_ARGUMENTS = 11
_ROWS = 6
"""Queries whose sums are in registers at once."""


def register_kernel(group_size: int, head_dim: int, page_size: int) -> str:
    """The name of the kernel for these sizes, of which XLA knows from now on."""
    unit = vector_unit()
    assert unit is not None
    sizes = Sizes(group_size, page_size, Block(min(page_size, MOST_POSITIONS), head_dim, unit))
    name = f"jaxinfer.paged_attention_tiles.1.{group_size}.{head_dim}.{page_size}.{unit.lanes}"
    register(name, lambda module, name: build(module, name, sizes))
    return name


@dataclass(frozen=True)
class Sizes:
    """What a kernel is written for."""

    group_size: int
    page_size: int
    block: Block


def build(module: ir.Module, name: str, sizes: Sizes) -> None:
    weights = write_weights(module, sizes.block)
    add_rows = {n: _write_add_rows(module, sizes, n, weights) for n in range(1, _ROWS + 1)}
    count, work = declare_kernel(module)
    _write_count(count)
    _write_work(work, sizes, add_rows)
    write_handler(module, name, num_arguments=_NUM_ARGUMENTS, num_results=1, count=count, work=work)


def _write_count(count: ir.Function) -> None:
    code = Code.of(count)
    num_tiles, sinks_KG = (Buffer(code, count.args[0], i) for i in (7, 10))
    tiles = code.builder.sext(code.load(I32, num_tiles.data), I64)
    code.builder.ret(code.mul(tiles, sinks_KG.size(0)))


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
    adds: bool,
) -> None:
    """``c = a @ b``, or what is added to c, of a few rows by their addresses.

    Of the numbers ``first <= i < last`` of a row of a, and of whole vectors up to column
    ``num_columns`` of c; b and c have rows of ``width``.
    """
    lanes = math.gcd(width, unit.lanes)
    kind = ir.VectorType(F32, lanes)
    most_vectors = (unit.num_registers - 4) // (_ROWS + 1)
    vectors = max(n for n in range(1, most_vectors + 1) if width // lanes % n == 0)

    def add_columns(column: ir.Value) -> None:
        def columns_of(row: ir.Value) -> list[ir.Value]:
            places = (code.add(column, integer(v * lanes)) for v in range(vectors))
            return [code.at(F32, row, place) for place in places]

        def add_number(i: ir.Value, *sums: ir.Value) -> list[ir.Value]:
            b_row = code.at(F32, b, code.mul(i, integer(width)))
            b_i = [code.load(kind, place, align=4) for place in columns_of(b_row)]
            added = []
            for r, a_row in enumerate(a):
                a_ri = code.spread(code.load(F32, code.at(F32, a_row, i)), lanes)
                added += [code.fma(a_ri, b_i[v], sums[r * vectors + v]) for v in range(vectors)]
            return added

        places = [place for c_row in c for place in columns_of(c_row)]
        zero = all_lanes(0.0, kind)
        before = [code.load(kind, p, align=4) if adds else zero for p in places]
        after = code.repeat(first, last, before, add_number)
        for total, place in zip(after, places, strict=True):
            code.builder.store(total, place, align=4)

    code.repeat_plainly(integer(0), num_columns, add_columns, step=integer(vectors * lanes))


def _place_of_row(code: Code, sizes: Sizes, row: ir.Value, stride: ir.Value) -> ir.Value:
    """Where a row of a tile lies, from its first token on, if tokens lie ``stride`` apart."""
    group = integer(sizes.group_size)
    head = code.mul(code.remainder(row, group), integer(sizes.block.head_dim))
    return code.add(code.mul(code.divide(row, group), stride), head)


def _write_add_rows(
    module: ir.Module, sizes: Sizes, num_rows: int, weights: ir.Function
) -> ir.Function:
    """``add_rows(q, keys, values, tops, totals, sums, firsts, lasts, row, start, stride)``.

    Adds a block, whose first position is ``start``, to some rows of a tile, of which ``row`` is the
    first. A row is a query head of a token; addresses are those of the whole tile. Queries and sums
    of tokens lie ``stride`` numbers apart.
    """
    kinds = (*(POINTER,) * 8, I64, I64, I64)
    function = declare(module, f"add_{num_rows}", NOTHING, *kinds, internal=True)
    function.attributes.add("noinline")
    q, keys, values, tops, totals, sums, firsts, lasts, row, start, stride = function.args
    code = Code.of(function)
    b = code.builder
    block, group = sizes.block, integer(sizes.group_size)
    head_dim, positions = integer(block.head_dim), integer(block.num_positions)
    logits = code.room(ir.ArrayType(F32, num_rows * block.num_positions))
    logits_rows = [code.at(F32, logits, integer(r * block.num_positions)) for r in range(num_rows)]

    def border(borders: ir.Value, row: ir.Value) -> ir.Value:
        """One that a row has, in the block."""
        position = _load_index(code, borders, code.divide(row, group))
        place = code.smaller(code.sub(position, start), positions)
        return code.larger_count(integer(0), place)

    rows = [code.add(row, integer(r)) for r in range(num_rows)]
    first, last = border(firsts, rows[0]), border(lasts, rows[-1])
    with b.if_then(code.is_less(first, last)):
        places = [_place_of_row(code, sizes, r, stride) for r in rows]
        q_rows, sums_rows = ([code.at(F32, array, p) for p in places] for array in (q, sums))
        _write_product(
            code,
            q_rows,
            keys,
            logits_rows,
            first=integer(0),
            last=head_dim,
            num_columns=last,
            width=block.num_positions,
            unit=block.unit,
            adds=False,
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
            adds=True,
        )
    b.ret_void()
    return function


def _load_index(code: Code, array: ir.Value, place: ir.Value) -> ir.Value:
    """An int32 out of an array, as a count."""
    return code.builder.sext(code.load(I32, code.at(I32, array, place)), I64)


def _write_work(work: ir.Function, sizes: Sizes, add_rows: dict[int, ir.Function]) -> None:
    code = Code.of(work)
    b = code.builder
    arguments, results, part, _ = work.args
    buffers = [Buffer(code, arguments, i) for i in range(_NUM_ARGUMENTS)]
    q, keys, values, table, rows, tokens, counts, _, firsts, lasts, sinks = (
        x.data for x in buffers
    )
    num_kv_heads, pages_per_row = buffers[0].size(1), buffers[3].size(1)
    block, group, page_size = sizes.block, sizes.group_size, integer(sizes.page_size)
    head_dim, positions = integer(block.head_dim), integer(block.num_positions)

    tile, kv_head = code.divide(part, num_kv_heads), code.remainder(part, num_kv_heads)
    row, token, num_queries = (_load_index(code, x, tile) for x in (rows, tokens, counts))
    num_rows = code.mul(num_queries, integer(group))
    firsts, lasts = code.at(I32, firsts, token), code.at(I32, lasts, token)
    first = _load_index(code, firsts, integer(0))
    last = _load_index(code, lasts, code.sub(num_queries, integer(1)))
    # Of the query heads that share a kv head, and of all that a token has.
    head_stride = integer(group * block.head_dim)
    stride = code.mul(num_kv_heads, head_stride)
    before = code.add(code.mul(token, stride), code.mul(kv_head, head_stride))
    q, out = (code.at(F32, x, before) for x in (q, Buffer(code, results, 0).data))
    tops, totals = (code.room(ir.ArrayType(F32, MOST_QUERIES * group)) for _ in range(2))
    size = block.head_dim * block.num_positions
    block_keys, block_values = (code.room(ir.ArrayType(F32, size)) for _ in range(2))

    def state_of(r: ir.Value) -> list[ir.Value]:
        sums = code.at(F32, out, _place_of_row(code, sizes, r, stride))
        return [code.at(F32, tops, r), code.at(F32, totals, r), sums]

    def begin(r: ir.Value) -> None:
        head = code.add(code.mul(kv_head, integer(group)), code.remainder(r, integer(group)))
        write_begin(code, block, code.load(F32, code.at(F32, sinks, head)), *state_of(r))

    code.repeat_plainly(integer(0), num_rows, begin)

    def add_block(index: ir.Value) -> None:
        start = code.mul(index, positions)
        entry = code.add(code.mul(row, pages_per_row), code.divide(start, page_size))
        page = _load_index(code, table, entry)
        with b.if_then(code.is_less(integer(0), page)):
            # Where the numbers of the kv head lie in the page, of keys and of values alike.
            head = code.add(code.mul(page, num_kv_heads), kv_head)
            stored = code.mul(head, integer(sizes.page_size * block.head_dim))
            offset = code.remainder(start, page_size)
            _widen(
                code,
                code.at(I16, keys, code.add(stored, offset)),
                page_size,
                block_keys,
                block.head_dim,
                block.num_positions,
                block.lanes,
            )
            offset = code.mul(offset, head_dim)
            _widen(
                code,
                code.at(I16, values, code.add(stored, offset)),
                head_dim,
                block_values,
                block.num_positions,
                block.head_dim,
                block.head_lanes,
            )
            num_turns = code.divide_up(num_rows, integer(_ROWS))

            def add_some(turn: ir.Value, r: ir.Value) -> list[ir.Value]:
                size = code.divide_up(code.sub(num_rows, r), code.sub(num_turns, turn))
                given = [q, block_keys, block_values, tops, totals, out, firsts, lasts]
                given += [r, start, stride]
                code.switch(size, {n: partial(b.call, add, given) for n, add in add_rows.items()})
                return [code.add(r, size)]

            code.repeat(integer(0), num_turns, [integer(0)], add_some)

    code.repeat_plainly(code.divide(first, positions), code.divide_up(last, positions), add_block)
    code.repeat_plainly(integer(0), num_rows, lambda r: write_finish(code, block, *state_of(r)[1:]))
    b.ret_void()


def _widen(
    code: Code,
    stored: ir.Value,
    stride: ir.Value,
    wide: ir.Value,
    num_rows: int,
    width: int,
    lanes: int,
) -> None:
    """``wide [rows, width]`` of bfloat16 rows that lie ``stride`` apart."""

    def widen_row(row: ir.Value) -> None:
        old, new = code.mul(row, stride), code.mul(row, integer(width))
        for column in range(0, width, lanes):
            x = code.bfloat16(code.at(I16, stored, code.add(old, integer(column))), lanes)
            code.builder.store(x, code.at(F32, wide, code.add(new, integer(column))), align=4)

    code.repeat_plainly(integer(0), integer(num_rows), widen_row)
