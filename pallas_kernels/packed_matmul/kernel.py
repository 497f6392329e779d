"""The machine code of ``packed_matmul``.

A part is the product of one panel with a block of rows. The panel comes out of memory with the
first tile of rows and out of the second cache with the others; these bring the next panel on its
way.
"""

from llvmlite import ir

from pallas_kernels.native.buffers import Buffer
from pallas_kernels.native.code import F32, Code, all_lanes, float32, integer
from pallas_kernels.native.handler import declare_kernel, write_handler
from pallas_kernels.native.machine import VectorUnit, register, vector_unit
from pallas_kernels.packed_matmul import VECTORS
from pallas_kernels.packed_matmul.call import NUM_ARGUMENTS, Call, Part, Tile
from pallas_kernels.packed_matmul.tile import Panel, write_tiles


def register_kernel() -> str:
    """The name of the kernel, of which XLA knows from now on."""
    unit = vector_unit()
    assert unit is not None
    name = f"jaxinfer.packed_matmul.2.{unit.lanes}"
    register(name, lambda module, name: build(module, name, unit))
    return name


def build(module: ir.Module, name: str, unit: VectorUnit) -> None:
    """Writes the kernel for a unit, which need not be all that the CPU has."""
    count, work = declare_kernel(module)
    code = Code.of(count)
    call = Call(code, count.args[0])
    code.builder.ret(code.mul(call.num_panels, call.num_blocks))
    _write_work(module, work, Panel(unit))
    write_handler(module, name, num_arguments=NUM_ARGUMENTS, num_results=1, count=count, work=work)


def _write_work(module: ir.Module, work: ir.Function, panel: Panel) -> None:
    products = write_tiles(module, panel)
    code = Code.of(work)
    b = code.builder
    arguments, results, part_number, _ = work.args
    call, y_RO = Call(code, arguments), Buffer(code, results, 0)
    part = Part(code, call, panel, part_number)
    y, size_out = y_RO.data, y_RO.size(1)
    num_columns = code.smaller(code.sub(size_out, part.column), integer(panel.width))

    def place_of(row: ir.Value) -> ir.Value:
        return code.at(F32, y, code.add(code.mul(row, size_out), part.column))

    def multiply(tile: Tile) -> None:
        tile.multiply(products, part.index, place_of(tile.row), size_out, num_columns)

    part.repeat_tiles(multiply)

    def clear_row(row: ir.Value) -> None:
        y_row = place_of(row)
        zero = all_lanes(0.0, ir.VectorType(F32, panel.unit.lanes))

        def clear(i: ir.Value) -> None:
            b.store(float32(0.0), code.at(F32, y_row, i))

        with b.if_else(code.is_less(num_columns, integer(panel.width))) as (is_narrow, is_whole):
            with is_whole:
                for v in range(VECTORS):
                    b.store(zero, code.at(zero.type, y_row, integer(v)), align=4)
            with is_narrow:
                code.repeat_plainly(integer(0), num_columns, clear)

    code.repeat_plainly(part.stop, part.end, clear_row)
    b.ret_void()
