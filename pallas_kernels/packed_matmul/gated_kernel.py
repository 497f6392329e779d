"""The machine code of ``packed_silu_gate``.

A part is a panel of the first half and the one of the second half that belongs to it, with a block
of rows. What both products of a tile give stays in the first cache, and becomes one number there.
"""

from llvmlite import ir

from pallas_kernels.native.buffers import Buffer
from pallas_kernels.native.code import F32, I16, Code, all_lanes, integer
from pallas_kernels.native.handler import declare_kernel, write_handler
from pallas_kernels.native.machine import VectorUnit, register, vector_unit
from pallas_kernels.packed_matmul import VECTORS
from pallas_kernels.packed_matmul.call import NUM_ARGUMENTS, Call, Part, Tile
from pallas_kernels.packed_matmul.tile import Panel, write_tiles


def register_kernel() -> str:
    """The name of the kernel, of which XLA knows from now on."""
    unit = vector_unit()
    assert unit is not None
    name = f"jaxinfer.packed_silu_gate.1.{unit.lanes}"
    register(name, lambda module, name: build(module, name, unit))
    return name


def build(module: ir.Module, name: str, unit: VectorUnit) -> None:
    """Writes the kernel for a unit, which need not be all that the CPU has."""
    count, work = declare_kernel(module)
    code = Code.of(count)
    call = Call(code, count.args[0])
    code.builder.ret(code.mul(code.divide(call.num_panels, integer(2)), call.num_blocks))
    _write_work(module, work, Panel(unit))
    write_handler(module, name, num_arguments=NUM_ARGUMENTS, num_results=1, count=count, work=work)


def _write_work(module: ir.Module, work: ir.Function, panel: Panel) -> None:
    products = write_tiles(module, panel)
    code = Code.of(work)
    b = code.builder
    arguments, results, part_number, _ = work.args
    call, y_RF = Call(code, arguments), Buffer(code, results, 0)
    part = Part(code, call, panel, part_number)
    width, lanes = integer(panel.width), panel.unit.lanes
    second = code.add(part.index, code.divide(call.num_panels, integer(2)))
    gates, ups = (code.room(ir.ArrayType(F32, panel.most_rows * panel.width)) for _ in range(2))
    sums, stored = ir.VectorType(F32, lanes), ir.VectorType(I16, lanes)

    def place_of(row: ir.Value, v: int) -> ir.Value:
        column = code.add(part.column, integer(v * lanes))
        return code.at(I16, y_RF.data, code.add(code.mul(row, y_RF.size(1)), column))

    def multiply(tile: Tile) -> None:
        tile.multiply(products, part.index, gates, width, width)
        tile.multiply(products, second, ups, width, width)

        def join(r: ir.Value) -> None:
            for v in range(VECTORS):
                place = code.add(code.mul(r, width), integer(v * lanes))
                gate, up = (code.load(sums, code.at(F32, x, place), align=4) for x in (gates, ups))
                hidden = code.to_bfloat16(b.fmul(_silu(code, gate), up))
                b.store(hidden, place_of(code.add(tile.row, r), v), align=2)

        code.repeat_plainly(integer(0), tile.size, join)

    part.repeat_tiles(multiply)

    def clear_row(row: ir.Value) -> None:
        for v in range(VECTORS):
            b.store(all_lanes(0, stored), place_of(row, v), align=2)

    code.repeat_plainly(part.stop, part.end, clear_row)
    b.ret_void()


def _silu(code: Code, x: ir.Value) -> ir.Value:
    """``x * sigmoid(x)``, from an exponential that cannot overflow."""
    b, one = code.builder, all_lanes(1.0, x.type)
    is_negative = b.fcmp_ordered("<", x, all_lanes(0.0, x.type))
    power = code.exp(b.select(is_negative, x, b.fneg(x)))
    return b.fdiv(b.fmul(x, b.select(is_negative, power, one)), b.fadd(one, power))
