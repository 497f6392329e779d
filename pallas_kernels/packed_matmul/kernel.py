"""The machine code of ``packed_matmul``.

A part is the product of one panel with a block of rows. Tiles of rows keep their sums in registers
while they go down the panel, which comes out of memory with the first of them and out of the second
cache with the others; these bring the next panel on its way.
"""

from dataclasses import dataclass
from functools import partial

from llvmlite import ir

from pallas_kernels.native.buffers import Buffer
from pallas_kernels.native.code import (
    BF16,
    F32,
    I8,
    I32,
    I64,
    NOTHING,
    POINTER,
    Code,
    all_lanes,
    declare,
    float32,
    integer,
)
from pallas_kernels.native.handler import declare_kernel, write_handler
from pallas_kernels.native.machine import VectorUnit, register, vector_unit
from pallas_kernels.packed_matmul import VECTORS

ROW_BLOCK = 96
"""Rows of a part."""

LINE_BYTES = 64
_BYTES_AHEAD = 8192
"""How far ahead of a single tile its own panel is fetched."""


def register_kernel() -> str:
    """The name of the kernel, of which XLA knows from now on."""
    unit = vector_unit()
    assert unit is not None
    name = f"jaxinfer.packed_matmul.2.{unit.lanes}"
    register(name, lambda module, name: build(module, name, unit))
    return name


def build(module: ir.Module, name: str, unit: VectorUnit) -> None:
    """Writes the kernel for a unit, which need not be all that the CPU has."""
    panel = _Panel(unit)
    count, work = declare_kernel(module)
    tiles = {size: _write_tile(module, panel, size) for size in range(1, panel.most_rows + 1)}
    _write_count(count)
    _write_work(work, panel, tiles)
    write_handler(module, name, num_arguments=3, num_results=1, count=count, work=work)


@dataclass(frozen=True)
class _Panel:
    """What a panel is on a CPU."""

    unit: VectorUnit

    @property
    def width(self) -> int:
        return VECTORS * self.unit.lanes

    @property
    def pair_bytes(self) -> int:
        """The bytes of a panel that two neighbouring rows of the weights have."""
        return 4 * self.width

    @property
    def most_rows(self) -> int:
        """Rows of a tile, whose sums stay in registers."""
        if self.unit.has_bfloat16:
            return 12
        return 8 if self.unit.num_registers >= 32 else 3


class _Call:
    """What is the same for all parts of a call."""

    def __init__(self, code: Code, arguments: ir.Value):
        self.x_RI, self.panels_njop = Buffer(code, arguments, 0), Buffer(code, arguments, 1)
        self.num_rows, self.num_pairs = self.x_RI.size(0), self.panels_njop.size(1)
        self.num_blocks = code.divide_up(self.num_rows, integer(ROW_BLOCK))
        self.num_parts = code.mul(self.panels_njop.size(0), self.num_blocks)
        live = code.builder.sext(code.load(I32, Buffer(code, arguments, 2).data), I64)
        self.num_live = code.larger_count(integer(0), code.smaller(live, self.num_rows))


def _write_count(count: ir.Function) -> None:
    code = Code.of(count)
    code.builder.ret(_Call(code, count.args[0]).num_parts)


def _write_work(work: ir.Function, panel: _Panel, tiles: dict[int, ir.Function]) -> None:
    code = Code.of(work)
    b = code.builder
    arguments, results, part, _ = work.args
    call, y_RO = _Call(code, arguments), Buffer(code, results, 0)
    x, panels, y, size_out = call.x_RI.data, call.panels_njop.data, y_RO.data, y_RO.size(1)
    index, block = code.divide(part, call.num_blocks), code.remainder(part, call.num_blocks)
    start = code.mul(block, integer(ROW_BLOCK))
    end = code.smaller(code.add(start, integer(ROW_BLOCK)), call.num_rows)
    stop = code.larger_count(start, code.smaller(end, call.num_live))
    column = code.mul(index, integer(panel.width))
    num_columns = code.smaller(code.sub(size_out, column), integer(panel.width))
    panel_bytes = code.mul(call.num_pairs, integer(panel.pair_bytes))
    weights = code.at(I8, panels, code.mul(index, panel_bytes))

    num_tiles = code.divide_up(code.sub(stop, start), integer(panel.most_rows))
    all_tiles = code.larger_count(integer(1), code.mul(num_tiles, call.num_blocks))
    tiles_before = code.mul(num_tiles, block)
    ahead_step = code.divide(integer(panel.pair_bytes), all_tiles)
    ahead_bytes = b.select(code.is_less(all_tiles, integer(2)), integer(_BYTES_AHEAD), panel_bytes)
    ahead = code.at(I8, weights, ahead_bytes)

    def multiply_tile(place: ir.Value, row: ir.Value) -> list[ir.Value]:
        size = code.divide_up(code.sub(stop, row), code.sub(num_tiles, place))
        share = code.mul(code.mul(code.add(tiles_before, place), call.num_pairs), ahead_step)
        given = [
            code.at(I32, x, code.mul(row, call.num_pairs)),
            weights,
            code.at(F32, y, code.add(code.mul(row, size_out), column)),
            call.num_pairs,
            size_out,
            num_columns,
            code.at(I8, ahead, share),
            ahead_step,
        ]
        code.switch(size, {n: partial(b.call, tile, given) for n, tile in tiles.items()})
        return [code.add(row, size)]

    code.repeat(integer(0), num_tiles, [start], multiply_tile)

    def clear_row(row: ir.Value) -> None:
        y_row = code.at(F32, y, code.add(code.mul(row, size_out), column))
        zero = all_lanes(0.0, ir.VectorType(F32, panel.unit.lanes))

        def clear(i: ir.Value) -> None:
            b.store(float32(0.0), code.at(F32, y_row, i))

        with b.if_else(code.is_less(num_columns, integer(panel.width))) as (is_narrow, is_whole):
            with is_whole:
                for v in range(VECTORS):
                    b.store(zero, code.at(zero.type, y_row, integer(v)), align=4)
            with is_narrow:
                code.repeat_plainly(integer(0), num_columns, clear)

    code.repeat_plainly(stop, end, clear_row)
    b.ret_void()


def _write_tile(module: ir.Module, panel: _Panel, num_rows: int) -> ir.Function:
    """The product of ``num_rows`` rows with one panel.

    ``tile(x, weights, y, pairs, size_out, columns, ahead, ahead_step)``: addresses of the first
    row's numbers, of the panel and of the first result; pairs of rows in the weights; how far apart
    rows of the result are; how many columns there are; what to fetch, and how many bytes a pair.
    """
    kinds = (POINTER,) * 3 + (I64,) * 3 + (POINTER, I64)
    tile = declare(module, f"tile_{num_rows}", NOTHING, *kinds, internal=True)
    tile.attributes.add("noinline")
    x, weights, y, pairs, size_out, num_columns, ahead, ahead_step = tile.args
    code = Code.of(tile)
    b = code.builder
    lanes = panel.unit.lanes
    product = _Bfloat16Product(code, lanes) if panel.unit.has_bfloat16 else _Product(code, lanes)
    pairs_kind = ir.VectorType(I32, lanes)

    def add_pair(pair: ir.Value, *sums: ir.Value) -> list[ir.Value]:
        for line in range(0, panel.pair_bytes, LINE_BYTES):
            distance = code.add(code.mul(pair, ahead_step), integer(line))
            code.prefetch(code.at(I8, ahead, distance))
        first = code.mul(pair, integer(VECTORS))
        w = [
            product.of_weights(code.load(pairs_kind, place, align=4))
            for place in (
                code.at(pairs_kind, weights, code.add(first, integer(v))) for v in range(VECTORS)
            )
        ]
        added = []
        for r in range(num_rows):
            place = code.add(code.mul(pairs, integer(r)), pair)
            x_r = product.of_row(code.load(I32, code.at(I32, x, place), align=4))
            added += [product.add(sums[VECTORS * r + v], x_r, w[v]) for v in range(VECTORS)]
        return added

    zero = all_lanes(0.0, ir.VectorType(F32, lanes))
    sums = code.repeat(integer(0), pairs, [zero] * (VECTORS * num_rows), add_pair)

    def place_of(r: int, column: ir.Value) -> ir.Value:
        return code.at(F32, y, code.add(code.mul(size_out, integer(r)), column))

    with b.if_else(code.is_less(num_columns, integer(panel.width))) as (is_narrow, is_whole):
        with is_whole:
            for i, total in enumerate(sums):
                r, v = divmod(i, VECTORS)
                b.store(total, place_of(r, integer(v * lanes)), align=4)
        with is_narrow:
            room = code.room(ir.ArrayType(F32, panel.width))
            for r in range(num_rows):
                for v in range(VECTORS):
                    b.store(sums[VECTORS * r + v], code.at(F32, room, integer(v * lanes)), align=4)

                def copy(column: ir.Value, r: int = r) -> None:
                    b.store(code.load(F32, code.at(F32, room, column)), place_of(r, column))

                code.repeat_plainly(integer(0), num_columns, copy)
    b.ret_void()
    return tile


class _Bfloat16Product:
    """Pairs of bfloat16 as they are."""

    def __init__(self, code: Code, lanes: int):
        self._code, self._lanes = code, lanes
        self._kind = ir.VectorType(BF16, 2 * lanes)
        sums = ir.VectorType(F32, lanes)
        name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * lanes}"
        self._dot = code.outside(name, sums, sums, self._kind, self._kind)

    def of_weights(self, pairs: ir.Value) -> ir.Value:
        return self._code.builder.bitcast(pairs, self._kind)

    def of_row(self, pair: ir.Value) -> ir.Value:
        return self.of_weights(self._code.spread(pair, self._lanes))

    def add(self, total: ir.Value, x: ir.Value, w: ir.Value) -> ir.Value:
        return self._code.builder.call(self._dot, [total, x, w])


class _Product:
    """Pairs of bfloat16 as two vectors of float32: one is the other's upper half."""

    def __init__(self, code: Code, lanes: int):
        self._code, self._lanes = code, lanes
        self._kind = ir.VectorType(F32, lanes)

    def of_weights(self, pairs: ir.Value) -> tuple[ir.Value, ir.Value]:
        b = self._code.builder
        first = b.shl(pairs, all_lanes(16, pairs.type))
        second = b.and_(pairs, all_lanes(0xFFFF0000, pairs.type))
        return b.bitcast(first, self._kind), b.bitcast(second, self._kind)

    def of_row(self, pair: ir.Value) -> tuple[ir.Value, ir.Value]:
        return self.of_weights(self._code.spread(pair, self._lanes))

    def add(
        self, total: ir.Value, x: tuple[ir.Value, ir.Value], w: tuple[ir.Value, ir.Value]
    ) -> ir.Value:
        for one, other in zip(x, w, strict=True):
            total = self._code.fma(one, other, total)
        return total
