"""The machine code for rows with several new tokens, cut into tiles of queries.

A part is one kv head of one tile. It goes through the blocks of positions that a query of the tile
sees (FlashAttention-2, arXiv 2307.08691): keys and values become float32 once, then a few queries
at a time are multiplied with them, their sums in registers.
"""

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


@dataclass(frozen=True)
class _Product:
    """``c = a @ b``, or what is added to c: the length of a row of each, and vectors of a row of c
    that are summed up at once."""

    name: str
    a_stride: int
    bc_stride: int
    lanes: int
    adds: bool

    def num_vectors(self, unit: VectorUnit) -> int:
        all_vectors = self.bc_stride // self.lanes
        most = (unit.num_registers - 4) // (_ROWS + 1)
        return max(n for n in range(1, most + 1) if all_vectors % n == 0)

    def write(self, module: ir.Module, unit: VectorUnit, num_rows: int) -> ir.Function:
        """``product(a, b, c, first, last, columns)`` of ``num_rows`` rows: of numbers
        ``first <= i < last`` of a row of a, and of whole vectors up to column ``columns`` of c."""
        name = f"{self.name}_{num_rows}"
        function = declare(module, name, NOTHING, *(POINTER,) * 3, *(I64,) * 3, internal=True)
        function.attributes.add("noinline")
        a, b, c, first, last, num_columns = function.args
        code = Code.of(function)
        vectors, kind = self.num_vectors(unit), ir.VectorType(F32, self.lanes)

        def at_column(column: ir.Value) -> None:
            def add_number(i: ir.Value, *sums: ir.Value) -> list[ir.Value]:
                row = code.add(code.mul(i, integer(self.bc_stride)), column)
                b_i = [
                    code.load(
                        kind, code.at(F32, b, code.add(row, integer(v * self.lanes))), align=4
                    )
                    for v in range(vectors)
                ]
                new = []
                for r in range(num_rows):
                    place = code.at(F32, a, code.add(i, integer(r * self.a_stride)))
                    a_ri = code.spread(code.load(F32, place), self.lanes)
                    new += [code.fma(a_ri, b_i[v], sums[r * vectors + v]) for v in range(vectors)]
                return new

            places = [
                code.at(F32, c, code.add(column, integer(r * self.bc_stride + v * self.lanes)))
                for r in range(num_rows)
                for v in range(vectors)
            ]
            zero = all_lanes(0.0, kind)
            before = [code.load(kind, p, align=4) if self.adds else zero for p in places]
            for total, place in zip(
                code.repeat(first, last, before, add_number), places, strict=True
            ):
                code.builder.store(total, place, align=4)

        step = integer(vectors * self.lanes)
        code.repeat_plainly(integer(0), num_columns, at_column, step=step)
        code.builder.ret_void()
        return function


def build(module: ir.Module, name: str, sizes: Sizes) -> None:
    block = sizes.block
    logits = _Product("logits", block.head_dim, block.num_positions, block.lanes, adds=False)
    values = _Product("values", block.num_positions, block.head_dim, block.head_lanes, adds=True)
    weights = write_weights(module, block)
    add_rows = {
        n: _write_add_rows(
            module, sizes, n, weights, *(p.write(module, block.unit, n) for p in (logits, values))
        )
        for n in range(1, _ROWS + 1)
    }
    count, work = declare_kernel(module)
    _write_count(count)
    _write_work(work, sizes, add_rows)
    write_handler(module, name, num_arguments=_NUM_ARGUMENTS, num_results=1, count=count, work=work)


def _write_count(count: ir.Function) -> None:
    code = Code.of(count)
    num_tiles, sinks_KG = (Buffer(code, count.args[0], i) for i in (7, 10))
    tiles = code.builder.sext(code.load(I32, num_tiles.data), I64)
    code.builder.ret(code.mul(tiles, sinks_KG.size(0)))


def _write_add_rows(
    module: ir.Module,
    sizes: Sizes,
    num_rows: int,
    weights: ir.Function,
    logits_product: ir.Function,
    values_product: ir.Function,
) -> ir.Function:
    """``add_rows(q, keys, values, tops, totals, sums, firsts, lasts, row, start)``.

    Adds a block, whose first position is ``start``, to some rows of a tile, of which ``row`` is the
    first. A row is a query head of a token; addresses are those of the whole tile.
    """
    kinds = (*(POINTER,) * 8, I64, I64)
    function = declare(module, f"add_{num_rows}", NOTHING, *kinds, internal=True)
    q, keys, values, tops, totals, sums, firsts, lasts, row, start = function.args
    code = Code.of(function)
    b = code.builder
    block, group = sizes.block, integer(sizes.group_size)
    head_dim, positions = integer(block.head_dim), integer(block.num_positions)
    logits = code.room(ir.ArrayType(F32, num_rows * block.num_positions))

    def border(borders: ir.Value, row: ir.Value) -> ir.Value:
        """One that a row has, in the block."""
        position = _load_index(code, borders, code.divide(row, group))
        place = code.smaller(code.sub(position, start), positions)
        return b.select(code.is_less(place, integer(0)), integer(0), place)

    first = border(firsts, row)
    last = border(lasts, code.add(row, integer(num_rows - 1)))
    with b.if_then(code.is_less(first, last)):
        skipped = code.mul(row, head_dim)
        sums = code.at(F32, sums, skipped)
        given = [code.at(F32, q, skipped), keys, logits, integer(0), head_dim, last]
        b.call(logits_product, given)

        def weigh(r: ir.Value) -> None:
            in_tile = code.add(row, r)
            state = [code.at(F32, array, in_tile) for array in (tops, totals)]
            state.append(code.at(F32, sums, code.mul(r, head_dim)))
            borders = [border(firsts, in_tile), border(lasts, in_tile)]
            b.call(weights, [code.at(F32, logits, code.mul(r, positions)), *borders, *state])

        code.repeat_plainly(integer(0), integer(num_rows), weigh)
        b.call(values_product, [logits, values, sums, first, last, head_dim])
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
    num_kv_heads, num_tokens, pages_per_row = (
        buffers[0].size(0),
        buffers[0].size(1),
        buffers[3].size(1),
    )
    block, group, page_size = sizes.block, sizes.group_size, integer(sizes.page_size)
    head_dim, positions = integer(block.head_dim), integer(block.num_positions)

    tile, kv_head = code.divide(part, num_kv_heads), code.remainder(part, num_kv_heads)
    row, token, num_queries = (_load_index(code, x, tile) for x in (rows, tokens, counts))
    num_rows = code.mul(num_queries, integer(group))
    firsts, lasts = code.at(I32, firsts, token), code.at(I32, lasts, token)
    first = _load_index(code, firsts, integer(0))
    last = _load_index(code, lasts, code.sub(num_queries, integer(1)))
    heads_before = code.mul(code.add(code.mul(kv_head, num_tokens), token), integer(group))
    numbers_before = code.mul(heads_before, head_dim)
    q, out = (code.at(F32, x, numbers_before) for x in (q, Buffer(code, results, 0).data))
    tops, totals = (code.room(ir.ArrayType(F32, MOST_QUERIES * group)) for _ in range(2))
    size = block.head_dim * block.num_positions
    block_keys, block_values = (code.room(ir.ArrayType(F32, size)) for _ in range(2))

    def state_of(r: ir.Value) -> list[ir.Value]:
        sums = code.at(F32, out, code.mul(r, head_dim))
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
                given = [q, block_keys, block_values, tops, totals, out, firsts, lasts, r, start]
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
