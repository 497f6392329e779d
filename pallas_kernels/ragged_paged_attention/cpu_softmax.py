"""The softmax average of one query as machine code, built block by block.

With a running maximum (online softmax, arXiv 1805.02867). As long as all numbers are finite, what a
query makes of its blocks depends on those alone that it sees, whoever shares a block with it.
"""

import math
from collections.abc import Callable
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
    float32,
    integer,
)
from pallas_kernels.native.machine import VectorUnit
from pallas_kernels.paging.softmax import NO_TOP


@dataclass(frozen=True)
class Block:
    """Positions that are added at once, of heads of ``head_dim`` (H) numbers."""

    num_positions: int
    head_dim: int
    unit: VectorUnit

    @property
    def lanes(self) -> int:
        """Positions in a vector."""
        return math.gcd(self.num_positions, self.unit.lanes)

    @property
    def head_lanes(self) -> int:
        """Numbers of a head in a vector."""
        return math.gcd(self.head_dim, self.unit.lanes)


def write_begin(code: Code, block: Block, sink: ir.Value, *state: ir.Value) -> None:
    """Sets ``top``, ``total`` and ``sums [H]``, given by address, to those of a query that has seen
    nothing, or its sink."""
    top, total, sums = state
    b = code.builder
    is_sink = b.fcmp_ordered(">", sink, float32(NO_TOP))
    b.store(sink, top)
    b.store(b.select(is_sink, float32(1.0), float32(0.0)), total)
    zeros = all_lanes(0.0, ir.VectorType(F32, block.head_lanes))
    _change(code, block, sums, lambda _: zeros)


def write_finish(code: Code, block: Block, total: ir.Value, sums: ir.Value) -> None:
    """Divides ``sums [H]`` by the total, both given by address; 0 where nothing was seen."""
    b = code.builder
    value = code.load(F32, total)
    value = b.select(b.fcmp_ordered("==", value, float32(0.0)), float32(1.0), value)
    values = code.spread(value, block.head_lanes)
    _change(code, block, sums, lambda x: b.fdiv(x, values))


def write_weights(module: ir.Module, block: Block) -> ir.Function:
    """``weights(logits, first, last, top, total, sums [H])``: the logits of a block become weights,
    0 outside of ``first <= position < last``, and what was summed up is brought to the new top."""
    kinds = (POINTER, I64, I64, POINTER, POINTER, POINTER)
    function = declare(module, "weights", NOTHING, *kinds, internal=True)
    function.attributes.add("noinline")
    logits, first, last, top, total, sums = function.args
    code = Code.of(function)
    b = code.builder
    lanes = block.lanes
    kind, places = ir.VectorType(F32, lanes), ir.VectorType(I32, lanes)
    lane = ir.Constant(places, list(range(lanes)))
    low, high = (code.spread(b.trunc(border, I32), lanes) for border in (first, last))

    def seen(start: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The logits of some positions, and which of them the query sees."""
        x = code.load(kind, code.at(F32, logits, start), align=4)
        place = b.add(code.spread(b.trunc(start, I32), lanes), lane)
        return x, b.and_(b.icmp_signed(">=", place, low), b.icmp_signed("<", place, high))

    def find_top(start: ir.Value, highest: ir.Value) -> list[ir.Value]:
        x, is_seen = seen(start)
        return [code.larger(b.select(is_seen, x, highest), highest)]

    end, step = integer(block.num_positions), integer(lanes)
    no_top = all_lanes(NO_TOP, kind)
    (highest,) = code.repeat(integer(0), end, [no_top], find_top, step=step)
    old = code.load(F32, top)
    new = code.larger(old, code.largest_lane(highest))
    news, nothing = code.spread(new, lanes), all_lanes(-math.inf, kind)

    def weigh(start: ir.Value, added: ir.Value) -> list[ir.Value]:
        x, is_seen = seen(start)
        weight = code.exp(b.fsub(b.select(is_seen, x, nothing), news))
        b.store(weight, code.at(F32, logits, start), align=4)
        return [b.fadd(added, weight)]

    (added,) = code.repeat(integer(0), end, [all_lanes(0.0, kind)], weigh, step=step)
    before = code.load(F32, total)
    b.store(b.fadd(before, code.sum_lanes(added)), total)
    with b.if_then(b.fcmp_unordered("!=", new, old)):
        factor = code.exp(code.spread(b.fsub(old, new), block.head_lanes))
        b.store(new, top)
        decayed = b.fmul(before, b.extract_element(factor, integer(0, I32)))
        b.store(b.fadd(decayed, code.sum_lanes(added)), total)
        _change(code, block, sums, lambda x: b.fmul(x, factor))
    b.ret_void()
    return function


def _change(
    code: Code, block: Block, sums: ir.Value, change: Callable[[ir.Value], ir.Value]
) -> None:
    """Changes all vectors of ``sums [H]``."""
    kind = ir.VectorType(F32, block.head_lanes)

    def change_one(h: ir.Value) -> None:
        place = code.at(F32, sums, h)
        code.builder.store(change(code.load(kind, place, align=4)), place, align=4)

    step = integer(block.head_lanes)
    code.repeat_plainly(integer(0), integer(block.head_dim), change_one, step=step)
