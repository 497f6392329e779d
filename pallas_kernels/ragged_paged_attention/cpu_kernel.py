"""The machine code for rows with one new token.

A part is one kv head of one row, with the query heads that share it: it goes through the row's
pages, fetching ahead, and makes the same of them whatever other rows there are.
"""

import math
from dataclasses import dataclass

from llvmlite import ir

from pallas_kernels.native.buffers import Buffer
from pallas_kernels.native.code import (
    F32,
    I16,
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
from pallas_kernels.ragged_paged_attention.cpu_softmax import (
    Block,
    write_begin,
    write_finish,
    write_weights,
)

_NUM_ARGUMENTS = 8

LINE_NUMBERS = 32
"""Numbers of 16 bits in what the CPU fetches at once."""


def register_kernel(group_size: int, head_dim: int, page_size: int) -> str:
    """The name of the kernel for these sizes, of which XLA knows from now on."""
    unit = vector_unit()
    assert unit is not None
    sizes = Sizes(group_size, head_dim, page_size, unit)
    name = f"jaxinfer.paged_attention.2.{group_size}.{head_dim}.{page_size}.{unit.lanes}"
    register(name, lambda module, name: build(module, name, sizes))
    return name


@dataclass(frozen=True)
class Sizes:
    """What a kernel is written for: G query heads for a kv head, of H numbers; p positions a
    page."""

    group_size: int
    head_dim: int
    page_size: int
    unit: VectorUnit

    @property
    def block(self) -> Block:
        """A page."""
        return Block(self.page_size, self.head_dim, self.unit)

    @property
    def most_sums(self) -> int:
        """Vectors of sums that stay in registers."""
        return self.unit.num_registers // 2

    @property
    def most_queries(self) -> int:
        """Query heads that are taken at once."""
        return self.most_sums // 4

    @property
    def tiles(self) -> list[tuple[int, int]]:
        """The query heads as the first of a tile, and how many it has."""
        num_tiles = -(-self.group_size // self.most_queries)
        ends = [self.group_size * (i + 1) // num_tiles for i in range(num_tiles)]
        return [(start, end - start) for start, end in zip([0, *ends], ends, strict=False)]


def build(module: ir.Module, name: str, sizes: Sizes) -> None:
    count, work = declare_kernel(module)
    code = Code.of(count)
    q_TKGH, page_table_SM = (Buffer(code, count.args[0], i) for i in (0, 3))
    code.builder.ret(code.mul(page_table_SM.size(0), q_TKGH.size(1)))
    parts = _Parts(module, sizes)
    _write_work(work, sizes, parts)
    write_handler(module, name, num_arguments=_NUM_ARGUMENTS, num_results=1, count=count, work=work)


class _Parts:
    """The functions for one page of one kv head."""

    def __init__(self, module: ir.Module, sizes: Sizes):
        self._module, self._sizes = module, sizes
        counts = {size for _, size in sizes.tiles}
        self.logits = {n: self._write_logits(n) for n in counts}
        self.values = {n: self._write_values(n) for n in counts}
        self.weights = write_weights(module, sizes.block)

    def _write_logits(self, num_queries: int) -> ir.Function:
        """``logits(q [n, H], keys [H, p], ahead [H, p], logits [n, p])``. What lies ahead is only
        fetched."""
        sizes = self._sizes
        function = declare(
            self._module, f"logits_{num_queries}", NOTHING, *(POINTER,) * 4, internal=True
        )
        function.attributes.add("noinline")
        q, keys, ahead, logits = function.args
        code = Code.of(function)
        lanes, page_size = sizes.block.lanes, sizes.page_size
        vectors = math.gcd(page_size // lanes, sizes.most_sums // num_queries & ~1 or 1)
        kind = ir.VectorType(F32, lanes)

        def add_vectors(first: ir.Value) -> None:
            def add_number(h: ir.Value, *sums: ir.Value) -> list[ir.Value]:
                row = code.add(code.mul(h, integer(page_size)), first)
                for number in range(0, vectors * lanes, LINE_NUMBERS):
                    code.prefetch(code.at(I16, ahead, code.add(row, integer(number))))
                k = [
                    code.bfloat16(code.at(I16, keys, code.add(row, integer(v * lanes))), lanes)
                    for v in range(vectors)
                ]
                new = []
                for g in range(num_queries):
                    place = code.add(h, integer(g * sizes.head_dim))
                    q_g = code.spread(code.load(F32, code.at(F32, q, place)), lanes)
                    new += [code.fma(q_g, k[v], sums[g * vectors + v]) for v in range(vectors)]
                return new

            zeros = [all_lanes(0.0, kind)] * (num_queries * vectors)
            sums = code.repeat(integer(0), integer(sizes.head_dim), zeros, add_number)
            for i, total in enumerate(sums):
                g, v = divmod(i, vectors)
                place = code.add(first, integer(g * page_size + v * lanes))
                code.builder.store(total, code.at(F32, logits, place), align=4)

        step = integer(vectors * lanes)
        code.repeat_plainly(integer(0), integer(page_size), add_vectors, step=step)
        code.builder.ret_void()
        return function

    def _write_values(self, num_queries: int) -> ir.Function:
        """``values(weights [n, p], values [p, H], ahead [p, H], first, last, sums [n, H])``."""
        sizes = self._sizes
        kinds = (POINTER, POINTER, POINTER, I64, I64, POINTER)
        function = declare(self._module, f"values_{num_queries}", NOTHING, *kinds, internal=True)
        function.attributes.add("noinline")
        weights, values, ahead, first, last, sums = function.args
        code = Code.of(function)
        lanes, head_dim = sizes.block.head_lanes, sizes.head_dim
        vectors = math.gcd(head_dim // lanes, max(sizes.most_sums // num_queries & ~1, 1))
        kind = ir.VectorType(F32, lanes)

        def add_vectors(column: ir.Value) -> None:
            def place(g: int, v: int) -> ir.Value:
                return code.at(F32, sums, code.add(column, integer(g * head_dim + v * lanes)))

            def add_position(j: ir.Value, *sums: ir.Value) -> list[ir.Value]:
                row = code.add(code.mul(j, integer(head_dim)), column)
                for number in range(0, vectors * lanes, LINE_NUMBERS):
                    code.prefetch(code.at(I16, ahead, code.add(row, integer(number))))
                values_j = [
                    code.bfloat16(code.at(I16, values, code.add(row, integer(v * lanes))), lanes)
                    for v in range(vectors)
                ]
                new = []
                for g in range(num_queries):
                    at = code.at(F32, weights, code.add(j, integer(g * sizes.page_size)))
                    weight = code.spread(code.load(F32, at), lanes)
                    new += [
                        code.fma(weight, values_j[v], sums[g * vectors + v]) for v in range(vectors)
                    ]
                return new

            places = [place(g, v) for g in range(num_queries) for v in range(vectors)]
            before = [code.load(kind, p, align=4) for p in places]
            after = code.repeat(first, last, before, add_position)
            for total, p in zip(after, places, strict=True):
                code.builder.store(total, p, align=4)

        step = integer(vectors * lanes)
        code.repeat_plainly(integer(0), integer(head_dim), add_vectors, step=step)
        code.builder.ret_void()
        return function


def _write_work(work: ir.Function, sizes: Sizes, parts: _Parts) -> None:
    code = Code.of(work)
    b = code.builder
    arguments, results, part, num_parts = work.args
    buffers = [Buffer(code, arguments, i) for i in range(_NUM_ARGUMENTS)]
    num_kv_heads, pages_per_row = buffers[0].size(1), buffers[3].size(1)
    q, keys, values, table, tokens, firsts, lasts, sinks = (buffer.data for buffer in buffers)
    out = Buffer(code, results, 0).data
    row, kv_head = code.divide(part, num_kv_heads), code.remainder(part, num_kv_heads)
    token, first, last = (code.load_count(array, row) for array in (tokens, firsts, lasts))
    with b.if_then(code.is_less(last, integer(1))):
        b.ret_void()  # not a row with one new token
    group, head_dim, page_size = sizes.group_size, sizes.head_dim, sizes.page_size
    heads_before = code.add(code.mul(token, num_kv_heads), kv_head)
    numbers_before = code.mul(heads_before, integer(group * head_dim))
    q, out = code.at(F32, q, numbers_before), code.at(F32, out, numbers_before)
    tops, totals = (code.room(ir.ArrayType(F32, group)) for _ in range(2))
    logits = code.room(ir.ArrayType(F32, group * page_size))

    def state_of(g: ir.Value) -> list[ir.Value]:
        sums = code.at(F32, out, code.mul(g, integer(head_dim)))
        return [code.at(F32, tops, g), code.at(F32, totals, g), sums]

    def begin(g: ir.Value) -> None:
        sink = code.load(F32, code.at(F32, sinks, code.add(code.mul(kv_head, integer(group)), g)))
        write_begin(code, sizes.block, sink, *state_of(g))

    code.repeat_plainly(integer(0), integer(group), begin)

    def place_of(page: ir.Value, head: ir.Value) -> ir.Value:
        """Where the numbers of one kv head lie in a page, of keys and of values alike."""
        return code.mul(code.add(code.mul(page, num_kv_heads), head), integer(page_size * head_dim))

    def page_at(of_row: ir.Value, place: ir.Value) -> ir.Value:
        entry = code.add(code.mul(of_row, pages_per_row), place)
        return code.load_count(table, entry)

    first_page = code.divide(first, integer(page_size))
    last_page = code.divide_up(last, integer(page_size))
    # After the last page comes the first one of the next part.
    next_part = code.smaller(code.add(part, integer(1)), code.sub(num_parts, integer(1)))
    next_row = code.divide(next_part, num_kv_heads)
    next_first = code.load_count(firsts, next_row)
    next_page = page_at(next_row, code.divide(next_first, integer(page_size)))
    next_keys = place_of(next_page, code.remainder(next_part, num_kv_heads))

    def add_page(place: ir.Value) -> None:
        page = page_at(row, place)
        with b.if_then(code.is_less(integer(0), page)):
            start = code.mul(place, integer(page_size))
            low = code.sub(first, start)
            low = b.select(code.is_less(low, integer(0)), integer(0), low)
            high = code.smaller(code.sub(last, start), integer(page_size))
            stored = place_of(page, kv_head)
            keys_Hp, values_pH = code.at(I16, keys, stored), code.at(I16, values, stored)
            following = code.add(place, integer(1))
            is_last = b.icmp_signed("==", following, last_page)
            following = place_of(page_at(row, b.select(is_last, place, following)), kv_head)
            ahead = code.at(I16, keys, b.select(is_last, next_keys, following))
            for g, size in sizes.tiles:
                given = [code.at(F32, q, integer(g * head_dim)), keys_Hp, values_pH]
                b.call(parts.logits[size], [*given, code.at(F32, logits, integer(g * page_size))])

            def weigh(g: ir.Value) -> None:
                given = [code.at(F32, logits, code.mul(g, integer(page_size))), low, high]
                b.call(parts.weights, [*given, *state_of(g)])

            code.repeat_plainly(integer(0), integer(group), weigh)
            for g, size in sizes.tiles:
                weights = code.at(F32, logits, integer(g * page_size))
                sums = code.at(F32, out, integer(g * head_dim))
                b.call(parts.values[size], [weights, values_pH, ahead, low, high, sums])

    code.repeat_plainly(first_page, last_page, add_page)

    code.repeat_plainly(
        integer(0),
        integer(group),
        lambda g: write_finish(code, sizes.block, *state_of(g)[1:]),
    )
    b.ret_void()
