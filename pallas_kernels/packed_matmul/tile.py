"""The product of a tile of rows with one panel.

The rows' sums stay in registers while they go down the panel.
"""

from dataclasses import dataclass

from llvmlite import ir

from pallas_kernels.native.code import (
    F32,
    I8,
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
from pallas_kernels.packed_matmul import VECTORS

_LINE_BYTES = 64


@dataclass(frozen=True)
class Panel:
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


def write_tiles(module: ir.Module, panel: Panel) -> dict[int, ir.Function]:
    """The products of tiles by their number of rows."""
    return {size: _write_tile(module, panel, size) for size in range(1, panel.most_rows + 1)}


def _write_tile(module: ir.Module, panel: Panel, num_rows: int) -> ir.Function:
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
        for line in range(0, panel.pair_bytes, _LINE_BYTES):
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

    def of_weights(self, pairs: ir.Value) -> ir.Value:
        return pairs

    def of_row(self, pair: ir.Value) -> ir.Value:
        return self._code.spread(pair, self._lanes)

    def add(self, total: ir.Value, x: ir.Value, w: ir.Value) -> ir.Value:
        return self._code.add_dot(total, x, w)


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
