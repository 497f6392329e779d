"""A call as its parts see it: each part is a block of rows with one panel, or with several."""

from collections.abc import Callable, Mapping
from functools import partial

from llvmlite import ir

from pallas_kernels.native.buffers import Buffer
from pallas_kernels.native.code import I8, I32, Code, integer
from pallas_kernels.packed_matmul.tile import Panel

ROW_BLOCK = 96
"""Rows of a part."""

NUM_ARGUMENTS = 3
_BYTES_AHEAD = 8192
"""How far ahead of a single tile its own panel is fetched."""


class Call:
    """What is the same for all parts: ``x [R, in]``, panels ``[n, in / 2, o, 2]``, live rows."""

    def __init__(self, code: Code, arguments: ir.Value):
        x_RI, panels_njop, num_live = (Buffer(code, arguments, i) for i in range(NUM_ARGUMENTS))
        self.x, self.panels = x_RI.data, panels_njop.data
        self.num_rows, self.num_pairs = x_RI.size(0), panels_njop.size(1)
        self.num_panels = panels_njop.size(0)
        self.num_blocks = code.divide_up(self.num_rows, integer(ROW_BLOCK))
        live = code.load_count(num_live.data, integer(0))
        self.num_live = code.larger_count(integer(0), code.smaller(live, self.num_rows))


class Part:
    """Rows ``start <= row < stop`` are multiplied, those up to ``end`` are padding."""

    def __init__(self, code: Code, call: Call, panel: Panel, part: ir.Value):
        self._code, self._call, self._panel = code, call, panel
        self.index = code.divide(part, call.num_blocks)
        self._block = code.remainder(part, call.num_blocks)
        self.start = code.mul(self._block, integer(ROW_BLOCK))
        self.end = code.smaller(code.add(self.start, integer(ROW_BLOCK)), call.num_rows)
        self.stop = code.larger_count(self.start, code.smaller(self.end, call.num_live))
        self.column = code.mul(self.index, integer(panel.width))

    def repeat_tiles(self, write: Callable[["Tile"], None]) -> None:
        """``write`` for each tile of the rows; tiles differ by one row at most."""
        code = self._code
        rows = code.sub(self.stop, self.start)
        num_tiles = code.divide_up(rows, integer(self._panel.most_rows))

        def take(place: ir.Value, row: ir.Value) -> list[ir.Value]:
            size = code.divide_up(code.sub(self.stop, row), code.sub(num_tiles, place))
            write(Tile(code, self._call, self._panel, row, size, self._share(num_tiles, place)))
            return [code.add(row, size)]

        code.repeat(integer(0), num_tiles, [self.start], take)

    def _share(self, num_tiles: ir.Value, place: ir.Value) -> tuple[ir.Value, ir.Value]:
        """What a tile fetches: bytes from its panel on, and how many for each pair of rows."""
        code, num_pairs = self._code, self._call.num_pairs
        all_tiles = code.mul(num_tiles, self._call.num_blocks)
        step = code.divide(
            integer(self._panel.pair_bytes), code.larger_count(integer(1), all_tiles)
        )
        panel_bytes = code.mul(num_pairs, integer(self._panel.pair_bytes))
        is_single = code.is_less(all_tiles, integer(2))
        distance = code.builder.select(is_single, integer(_BYTES_AHEAD), panel_bytes)
        tiles_before = code.add(code.mul(num_tiles, self._block), place)
        return code.add(distance, code.mul(code.mul(tiles_before, num_pairs), step)), step


class Tile:
    """A few rows, from ``row`` on."""

    def __init__(
        self,
        code: Code,
        call: Call,
        panel: Panel,
        row: ir.Value,
        size: ir.Value,
        share: tuple[ir.Value, ir.Value],
    ):
        self._code, self._call, self._panel, self._share = code, call, panel, share
        self.row, self.size = row, size

    def multiply(
        self,
        products: Mapping[int, ir.Function],
        panel: ir.Value,
        y: ir.Value,
        stride: ir.Value,
        num_columns: ir.Value,
    ) -> None:
        """The product with the panel of this number, at ``y``, in rows ``stride`` apart."""
        code, call = self._code, self._call
        pair_bytes = integer(self._panel.pair_bytes)
        weights = code.at(I8, call.panels, code.mul(code.mul(panel, call.num_pairs), pair_bytes))
        distance, step = self._share
        given = [
            code.at(I32, call.x, code.mul(self.row, call.num_pairs)),
            weights,
            y,
            call.num_pairs,
            stride,
            num_columns,
            code.at(I8, weights, distance),
            step,
        ]
        cases = {n: partial(code.builder.call, product, given) for n, product in products.items()}
        code.switch(self.size, cases)
