"""The machine code for rows with several new tokens, cut into tiles of queries.

A part is one kv head of one tile. It goes through the blocks of positions that a query of the tile
sees (FlashAttention-2, arXiv 2307.08691): keys and values are prepared once, and then multiplied
with a few rows at a time. Where queries are bfloat16, and the CPU multiplies pairs of those, they
and the keys stay what they are: a product of two is exact in float32 either way (the instruction
takes numbers below 2**-126 as zero).
"""

import math
from functools import partial

from llvmlite import ir

from pallas_kernels.native.buffers import Buffer
from pallas_kernels.native.code import (
    F32,
    I16,
    I32,
    Code,
    all_lanes,
    integer,
)
from pallas_kernels.native.handler import declare_kernel, write_handler
from pallas_kernels.native.machine import VectorUnit, register, vector_unit
from pallas_kernels.ragged_paged_attention.cpu import MOST_POSITIONS, MOST_QUERIES
from pallas_kernels.ragged_paged_attention.cpu_softmax import Block, write_begin, write_finish
from pallas_kernels.ragged_paged_attention.cpu_tile_rows import (
    MOST_ROWS,
    Sizes,
    place_of_row,
    write_add_rows,
)

_NUM_ARGUMENTS = 12


def multiplies_bfloat16() -> bool:
    """Whether the CPU that is here does."""
    unit = vector_unit()
    return unit is not None and unit.has_bfloat16


def register_kernel(group_size: int, head_dim: int, page_size: int, *, is_paired: bool) -> str:
    """The name of the kernel for these sizes, of which XLA knows from now on.

    ``is_paired``: queries are bfloat16, not float32, which the CPU has to multiply.
    """
    unit = vector_unit()
    assert unit is not None
    block = Block(min(page_size, MOST_POSITIONS), head_dim, unit)
    sizes = Sizes(group_size, page_size, block, is_paired)
    kind = f"{group_size}.{head_dim}.{page_size}.{unit.lanes}{'.pairs' if is_paired else ''}"
    name = f"jaxinfer.paged_attention_tiles.1.{kind}"
    register(name, lambda module, name: build(module, name, sizes))
    return name


def build(module: ir.Module, name: str, sizes: Sizes) -> None:
    add_rows = write_add_rows(module, sizes)
    count, work = declare_kernel(module)
    _write_count(count)
    _write_work(work, sizes, add_rows)
    write_handler(module, name, num_arguments=_NUM_ARGUMENTS, num_results=1, count=count, work=work)


def _write_count(count: ir.Function) -> None:
    code = Code.of(count)
    q_TKGH, num_tiles = (Buffer(code, count.args[0], i) for i in (0, 7))
    tiles = code.load_count(num_tiles.data, integer(0))
    code.builder.ret(code.mul(tiles, q_TKGH.size(1)))


def _write_work(work: ir.Function, sizes: Sizes, add_rows: dict[int, ir.Function]) -> None:
    code = Code.of(work)
    b = code.builder
    arguments, results, part, _ = work.args
    buffers = [Buffer(code, arguments, i) for i in range(_NUM_ARGUMENTS)]
    q, keys, values, table, rows, tokens, counts, _, firsts, lasts, sinks, factors = (
        buffer.data for buffer in buffers
    )
    num_kv_heads, pages_per_row = buffers[0].size(1), buffers[3].size(1)
    block, group, page_size = sizes.block, sizes.group_size, integer(sizes.page_size)
    head_dim, positions = integer(block.head_dim), integer(block.num_positions)

    tile, kv_head = code.divide(part, num_kv_heads), code.remainder(part, num_kv_heads)
    row, token, num_queries = (code.load_count(x, tile) for x in (rows, tokens, counts))
    num_rows = code.mul(num_queries, integer(group))
    firsts, lasts = code.at(I32, firsts, token), code.at(I32, lasts, token)
    first = code.load_count(firsts, integer(0))
    last = code.load_count(lasts, code.sub(num_queries, integer(1)))
    heads_before = code.add(code.mul(token, num_kv_heads), kv_head)
    q, out = (
        code.at(F32, x, code.mul(heads_before, integer(group * size)))
        for x, size in ((q, sizes.q_stride), (Buffer(code, results, 0).data, block.head_dim))
    )
    factor = code.load(F32, code.at(F32, factors, kv_head))
    tops, totals = (code.room(ir.ArrayType(F32, MOST_QUERIES * group)) for _ in range(2))
    size = block.head_dim * block.num_positions
    block_keys, block_values = (code.room(ir.ArrayType(F32, size)) for _ in range(2))

    def state_of(r: ir.Value) -> list[ir.Value]:
        sums = code.at(F32, out, place_of_row(code, sizes, r, num_kv_heads, block.head_dim))
        return [code.at(F32, tops, r), code.at(F32, totals, r), sums]

    def begin(r: ir.Value) -> None:
        head = code.add(code.mul(kv_head, integer(group)), code.remainder(r, integer(group)))
        write_begin(code, block, code.load(F32, code.at(F32, sinks, head)), *state_of(r))

    code.repeat_plainly(integer(0), num_rows, begin)

    def add_block(index: ir.Value) -> None:
        start = code.mul(index, positions)
        entry = code.add(code.mul(row, pages_per_row), code.divide(start, page_size))
        page = code.load_count(table, entry)
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
                block.unit,
                sizes.is_paired,
            )
            offset = code.mul(offset, head_dim)
            _widen(
                code,
                code.at(I16, values, code.add(stored, offset)),
                head_dim,
                block_values,
                block.num_positions,
                block.head_dim,
                block.unit,
            )
            num_turns = code.divide_up(num_rows, integer(MOST_ROWS))

            def add_some(turn: ir.Value, r: ir.Value) -> list[ir.Value]:
                size = code.divide_up(code.sub(num_rows, r), code.sub(num_turns, turn))
                given = [q, block_keys, block_values, tops, totals, out, firsts, lasts]
                given += [r, start, num_kv_heads, factor]
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
    unit: VectorUnit,
    is_paired: bool = False,
) -> None:
    """``wide [rows, width]`` in float32 of bfloat16 rows that lie ``stride`` apart.

    ``is_paired``: ``[rows / 2, width]``, in which the numbers of two rows are a pair, as they are.
    """
    b, lanes = code.builder, math.gcd(width, unit.lanes)
    words = ir.VectorType(I32, lanes)

    def load(row: ir.Value, column: int) -> ir.Value:
        place = code.add(code.mul(row, stride), integer(column))
        bits = code.load(ir.VectorType(I16, lanes), code.at(I16, stored, place), align=2)
        return b.zext(bits, words)

    def write_row(row: ir.Value) -> None:
        for column in range(0, width, lanes):
            place = code.add(code.mul(row, integer(width)), integer(column))
            if is_paired:
                first = code.mul(row, integer(2))
                lower, upper = load(first, column), load(code.add(first, integer(1)), column)
            else:
                lower, upper = all_lanes(0, words), load(row, column)
            pair = b.or_(lower, b.shl(upper, all_lanes(16, words)))
            b.store(pair, code.at(I32, wide, place), align=4)

    code.repeat_plainly(integer(0), integer(num_rows // (2 if is_paired else 1)), write_row)
