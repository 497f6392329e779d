"""A few words to write machine code with: structs, loops and calls over an LLVM builder."""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from llvmlite import ir

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32 = ir.FloatType()
POINTER = ir.PointerType()
NOTHING = ir.VoidType()


class Bfloat16(ir.types.Type):
    """LLVM's ``bfloat``, which llvmlite has no name for."""

    intrinsic_name = "bf16"

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bfloat16)

    def __hash__(self) -> int:
        return hash(Bfloat16)


BF16 = Bfloat16()


class Struct:
    """A C struct by the names of its fields."""

    def __init__(self, **fields: "ir.Type | Struct"):
        self._fields = fields
        kinds: list[ir.Type] = [_kind_of(field) for field in fields.values()]
        self.kind: ir.Type = ir.LiteralStructType(kinds)

    def path(self, names: Sequence[str]) -> tuple[list[int], ir.Type]:
        """The indices of a field, through the structs it lies in, and its type."""
        first, *others = names
        index, kind = list(self._fields).index(first), self._fields[first]
        if not others:
            return [index], _kind_of(kind)
        assert isinstance(kind, Struct)
        indices, last = kind.path(others)
        return [index, *indices], last


def _kind_of(field: "ir.Type | Struct") -> ir.Type:
    return field.kind if isinstance(field, Struct) else field


def integer(value: int, kind: ir.Type = I64) -> ir.Constant:
    return ir.Constant(kind, value)


def float32(value: float) -> ir.Constant:
    """The nearest float32."""
    return ir.Constant(F32, struct.unpack("f", struct.pack("f", value))[0])


def all_lanes(value: float, kind: ir.VectorType) -> ir.Constant:
    """A vector of one number."""
    one = float32(value) if kind.element == F32 else ir.Constant(kind.element, value)
    return ir.Constant(kind, [one] * kind.count)


def _name(kind: ir.VectorType) -> str:
    """How the names of intrinsics for float32 end."""
    return f"v{kind.count}f32"


NULL = ir.Constant(POINTER, None)


@dataclass
class Code:
    """Writes at the end of a function."""

    builder: ir.IRBuilder

    @staticmethod
    def of(function: ir.Function) -> "Code":
        return Code(ir.IRBuilder(function.append_basic_block()))

    # Memory

    def room(self, kind: ir.Type) -> ir.Value:
        """The address of a place for ``kind`` on the stack, one for all turns of a loop."""
        with self.builder.goto_entry_block():
            place = self.builder.alloca(kind)
        place.type = POINTER  # llvmlite knows it as a pointer to a kind, which no other may be
        return place

    def field(self, struct: Struct, pointer: ir.Value, *names: str) -> ir.Value:
        """The address of a field."""
        indices, _ = struct.path(names)
        steps = [integer(i, I32) for i in (0, *indices)]
        return self.builder.gep(pointer, steps, source_etype=struct.kind)

    def read(self, struct: Struct, pointer: ir.Value, *names: str) -> ir.Value:
        _, kind = struct.path(names)
        return self.load(kind, self.field(struct, pointer, *names))

    def write(self, struct: Struct, pointer: ir.Value, **values: ir.Value) -> None:
        for name, value in values.items():
            self.builder.store(value, self.field(struct, pointer, name))

    def address(self, thing: ir.Value) -> ir.Value:
        """A function or a constant as a pointer to store: llvmlite keeps their types apart."""
        return self.at(I8, thing, integer(0))

    def at(self, kind: ir.Type, pointer: ir.Value, index: ir.Value) -> ir.Value:
        """The address of element ``index`` of an array of ``kind``."""
        return self.builder.gep(pointer, [index], source_etype=kind)

    def load(self, kind: ir.Type, pointer: ir.Value, align: int | None = None) -> ir.Value:
        return self.builder.load(pointer, align=align, typ=kind)

    def load_count(self, array: ir.Value, place: ir.Value) -> ir.Value:
        """Element ``place`` of an array of int32, as wide as other counts."""
        return self.builder.sext(self.load(I32, self.at(I32, array, place)), I64)

    def add_atomic(self, pointer: ir.Value, value: int) -> ir.Value:
        """What was there before."""
        return self.builder.atomic_rmw("add", pointer, integer(value), "acq_rel")

    def prefetch(self, pointer: ir.Value) -> None:
        """Asks for a line in the second cache; addresses that do not exist do no harm."""
        read, second_level, data = integer(0, I32), integer(2, I32), integer(1, I32)
        fetch = self.outside("llvm.prefetch.p0", NOTHING, POINTER, I32, I32, I32)
        self.builder.call(fetch, [pointer, read, second_level, data])

    def spread(self, value: ir.Value, lanes: int) -> ir.Value:
        """A vector that holds the value in every lane."""
        kind = ir.VectorType(value.type, lanes)
        nothing = ir.Constant(kind, ir.Undefined)
        one = self.builder.insert_element(nothing, value, integer(0, I32))
        first = ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
        return self.builder.shuffle_vector(one, nothing, first)

    def bfloat16(self, pointer: ir.Value, lanes: int) -> ir.Value:
        """A vector of bfloat16 out of memory, as float32."""
        bits = self.load(ir.VectorType(I16, lanes), pointer, align=2)
        wide = self.builder.zext(bits, ir.VectorType(I32, lanes))
        upper = self.builder.shl(wide, all_lanes(16, wide.type))
        return self.builder.bitcast(upper, ir.VectorType(F32, lanes))

    def to_bfloat16(self, x: ir.Value) -> ir.Value:
        """The bits of a vector of float32, rounded to the nearest bfloat16, or to the even one."""
        b, lanes = self.builder, x.type.count
        whole = ir.VectorType(I32, lanes)
        bits, half, one = b.bitcast(x, whole), all_lanes(16, whole), all_lanes(1, whole)
        upper = b.lshr(bits, half)
        odd = b.and_(upper, one)
        rounded = b.lshr(b.add(b.add(bits, all_lanes(0x7FFF, whole)), odd), half)
        quiet = b.or_(upper, all_lanes(0x40, whole))
        is_number = b.fcmp_ordered("ord", x, x)
        return b.trunc(b.select(is_number, rounded, quiet), ir.VectorType(I16, lanes))

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """``a * b + c``, rounded once."""
        kind = a.type
        return self.builder.call(self.outside(f"llvm.fma.{_name(kind)}", *(kind,) * 4), [a, b, c])

    def add_dot(self, total: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
        """``total`` and the products of pairs of bfloat16, which are vectors of 32 bits each."""
        kind = ir.VectorType(BF16, 2 * total.type.count)
        name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * total.type.count}"
        dot = self.outside(name, total.type, total.type, kind, kind)
        pairs = [self.builder.bitcast(x, kind) for x in (a, b)]
        return self.builder.call(dot, [total, *pairs])

    def larger(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Of floats; ``b`` where they cannot be compared."""
        return self.builder.select(self.builder.fcmp_ordered(">", a, b), a, b)

    def exp(self, x: ir.Value) -> ir.Value:
        """Of a vector of float32 up to 0, to 2 units in the last place; 0 below -87."""
        b, kind = self.builder, x.type
        lowest = all_lanes(-87.0, kind)
        is_zero = b.fcmp_ordered("<", x, lowest)
        x = b.select(is_zero, lowest, x)
        rint = self.outside(f"llvm.rint.{_name(kind)}", kind, kind)
        power = b.call(rint, [b.fmul(x, all_lanes(1.4426950408889634, kind))])
        # The logarithm of 2 in two parts, of which the first has few enough digits to be exact.
        for part in (-0.693145751953125, -1.4286068203094172e-06):
            x = self.fma(power, all_lanes(part, kind), x)
        total = all_lanes(1 / 5040, kind)
        for factor in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
            total = self.fma(total, x, all_lanes(factor, kind))
        whole = ir.VectorType(I32, kind.count)
        exponent = b.add(b.fptosi(power, whole), all_lanes(127, whole))
        scale = b.bitcast(b.shl(exponent, all_lanes(23, whole)), kind)
        return b.select(is_zero, all_lanes(0.0, kind), b.fmul(total, scale))

    def largest_lane(self, x: ir.Value) -> ir.Value:
        return self.builder.call(
            self.outside(f"llvm.vector.reduce.fmax.{_name(x.type)}", F32, x.type), [x]
        )

    def sum_lanes(self, x: ir.Value) -> ir.Value:
        name = f"llvm.vector.reduce.fadd.{_name(x.type)}"
        zero = float32(0.0)
        return self.builder.call(
            self.outside(name, F32, F32, x.type), [zero, x], fastmath=("reassoc",)
        )

    def outside(self, name: str, result: ir.Type, *arguments: ir.Type) -> ir.Function:
        """A function that is not of this module: of LLVM, or of C."""
        module = self.builder.module
        return module.globals.get(name) or declare(module, name, result, *arguments)

    # Arithmetic of counts, which are never negative

    def add(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.add(a, b)

    def sub(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.sub(a, b)

    def mul(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.mul(a, b)

    def divide(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.udiv(a, b)

    def divide_up(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.divide(self.sub(self.add(a, b), integer(1)), b)

    def remainder(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.urem(a, b)

    def is_less(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.icmp_signed("<", a, b)

    def smaller(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.select(self.is_less(a, b), a, b)

    def larger_count(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.select(self.is_less(a, b), b, a)

    # Flow

    def repeat(
        self,
        start: ir.Value,
        stop: ir.Value,
        carried: Sequence[ir.Value],
        body: Callable[..., Sequence[ir.Value]],
        step: ir.Value | None = None,
    ) -> list[ir.Value]:
        """``for index in range(start, stop, step): carried = body(index, *carried)``."""
        b = self.builder
        before = b.block
        head = b.append_basic_block("head")
        inside = b.append_basic_block("inside")
        after = b.append_basic_block("after")
        b.branch(head)
        b.position_at_end(head)
        phis = [b.phi(value.type) for value in (start, *carried)]
        for phi, value in zip(phis, (start, *carried), strict=True):
            phi.add_incoming(value, before)
        index, *state = phis
        b.cbranch(self.is_less(index, stop), inside, after)
        b.position_at_end(inside)
        new = body(index, *state)
        following = self.add(index, integer(1) if step is None else step)
        for phi, value in zip(phis, (following, *new), strict=True):
            phi.add_incoming(value, b.block)
        b.branch(head)
        b.position_at_end(after)
        return state

    def repeat_plainly(
        self,
        start: ir.Value,
        stop: ir.Value,
        body: Callable[[ir.Value], object],
        step: ir.Value | None = None,
    ) -> None:
        """``for index in range(start, stop, step): body(index)``."""

        def run(index: ir.Value) -> list[ir.Value]:
            body(index)
            return []

        self.repeat(start, stop, [], run, step)

    def call_pointer(self, function: ir.Value, result: ir.Type, *arguments: ir.Value) -> ir.Value:
        """Calls the function at an address."""
        function.type = ir.FunctionType(result, [x.type for x in arguments]).as_pointer()
        return self.builder.call(function, arguments)

    def switch(self, value: ir.Value, cases: Mapping[int, Callable[[], object]]) -> None:
        """Writes each case; the value is one of them."""
        b = self.builder
        none, after = b.append_basic_block("none"), b.append_basic_block("after")
        branches = b.switch(value, none)
        b.position_at_end(none)
        b.unreachable()
        for number, write in cases.items():
            block = b.append_basic_block("case")
            branches.add_case(integer(number), block)
            b.position_at_end(block)
            write()
            b.branch(after)
        b.position_at_end(after)

    def repeat_while(self, body: Callable[[], ir.Value]) -> None:
        """``while body(): pass``."""
        b = self.builder
        inside, after = b.append_basic_block("inside"), b.append_basic_block("after")
        b.branch(inside)
        b.position_at_end(inside)
        b.cbranch(body(), inside, after)
        b.position_at_end(after)


def declare(
    module: ir.Module, name: str, result: ir.Type, *arguments: ir.Type, internal: bool = False
) -> ir.Function:
    """A function of the module, to be written; or one from outside, if it never is."""
    function = ir.Function(module, ir.FunctionType(result, arguments), name)
    function.attributes.add("nounwind")
    if internal:
        function.linkage = "internal"
    return function
