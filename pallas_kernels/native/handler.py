"""The one function that XLA calls for a kernel, whatever the kernel does.

A kernel is two functions: how many parts a call falls into, and the work of one part. The handler
deals parts out to the threads of XLA's pool. The thread that called takes parts as well, and waits
for those only that another thread has begun: where all threads of the pool wait for one another,
the callers do the work. A task that comes too late finds nothing left; what it looks at is freed by
whoever looks last.
"""

from llvmlite import ir

from pallas_kernels.native import ffi
from pallas_kernels.native.code import (
    I32,
    I64,
    NOTHING,
    NULL,
    POINTER,
    Code,
    Struct,
    declare,
    integer,
)

JOB = Struct(
    holders=I64,
    arrived=I64,
    num_takers=I64,
    num_parts=I64,
    arguments=POINTER,
    results=POINTER,
    done=I64,
)
"""Behind it lie the next parts of each taker, each on a line of its own."""
_LINE_BYTES = 64
_SPINS_BEFORE_YIELDING = 2000


def declare_kernel(module: ir.Module) -> tuple[ir.Function, ir.Function]:
    """``count(arguments, results) -> parts``, and what does one of them,
    ``work(arguments, results, part, parts)``.

    Arguments and results are what ``buffers.Buffer`` reads. Both functions are to be written.
    """
    count = declare(module, "count", I64, POINTER, POINTER, internal=True)
    work = declare(module, "work", NOTHING, POINTER, POINTER, I64, I64, internal=True)
    return count, work


def write_handler(
    module: ir.Module,
    name: str,
    *,
    num_arguments: int,
    num_results: int,
    count: ir.Function,
    work: ir.Function,
) -> None:
    """Writes function ``name``: what is registered with XLA."""
    take_parts = _write_take_parts(module, work)
    release = _write_release(module)
    task = declare(module, "task", NOTHING, POINTER, internal=True)
    code = Code.of(task)
    code.builder.call(take_parts, [task.args[0]])
    code.builder.call(release, [task.args[0]])
    code.builder.ret_void()

    handler = declare(module, name, POINTER, POINTER)
    (frame,) = handler.args
    code = Code.of(handler)
    b = code.builder
    _answer_metadata(code, frame)
    with b.if_then(
        b.icmp_signed("!=", code.read(ffi.CALL_FRAME, frame, "stage"), integer(ffi.EXECUTE, I32))
    ):
        b.ret(NULL)
    num_given = code.read(ffi.CALL_FRAME, frame, "arguments", "size")
    num_asked = code.read(ffi.CALL_FRAME, frame, "results", "size")
    is_right = b.and_(
        b.icmp_signed("==", num_given, integer(num_arguments)),
        b.icmp_signed("==", num_asked, integer(num_results)),
    )
    with b.if_then(b.not_(is_right), likely=False):
        b.ret(
            _error(
                code, module, frame, f"{name} takes {num_arguments} arrays and gives {num_results}"
            )
        )
    arguments = code.read(ffi.CALL_FRAME, frame, "arguments", "values")
    results = code.read(ffi.CALL_FRAME, frame, "results", "values")
    threads = _num_threads(code, frame)
    parts = b.call(count, [arguments, results])
    takers = code.smaller(threads, parts)

    def work_alone() -> None:
        code.repeat_plainly(
            integer(0), parts, lambda part: b.call(work, [arguments, results, part, parts])
        )
        b.ret(NULL)

    with b.if_then(code.is_less(takers, integer(2))):
        work_alone()
    job_bytes = code.mul(code.add(takers, integer(1)), integer(_LINE_BYTES))
    job = b.call(code.outside("malloc", POINTER, I64), [job_bytes])
    with b.if_then(b.icmp_unsigned("==", job, NULL), likely=False):
        work_alone()
    code.write(
        JOB,
        job,
        holders=takers,
        arrived=integer(0),
        num_takers=takers,
        num_parts=parts,
        arguments=arguments,
        results=results,
        done=integer(0),
    )

    def begin(taker: ir.Value) -> None:
        b.store(_first_part(code, taker, takers, parts), _next_part(code, job, taker))

    code.repeat_plainly(integer(0), takers, begin)
    _schedule(code, frame, code.sub(takers, integer(1)), task, job, release)
    b.call(take_parts, [job])
    _wait(code, job, parts)
    b.call(release, [job])
    b.ret(NULL)


def _first_part(code: Code, taker: ir.Value, takers: ir.Value, parts: ir.Value) -> ir.Value:
    return code.divide(code.mul(taker, parts), takers)


def _next_part(code: Code, job: ir.Value, taker: ir.Value) -> ir.Value:
    line = ir.ArrayType(I64, _LINE_BYTES // 8)
    return code.at(line, job, code.add(taker, integer(1)))


def _write_take_parts(module: ir.Module, work: ir.Function) -> ir.Function:
    """Takes parts of a job until none is left."""
    function = declare(module, "take_parts", NOTHING, POINTER, internal=True)
    (job,) = function.args
    code = Code.of(function)
    b = code.builder
    parts, takers = code.read(JOB, job, "num_parts"), code.read(JOB, job, "num_takers")
    arguments, results = code.read(JOB, job, "arguments"), code.read(JOB, job, "results")
    arrival = code.add_atomic(code.field(JOB, job, "arrived"), 1)

    def take_from(distance: ir.Value) -> None:
        whose = code.remainder(code.add(arrival, distance), takers)
        next_part = _next_part(code, job, whose)
        end = _first_part(code, code.add(whose, integer(1)), takers, parts)

        def take() -> ir.Value:
            part = code.add_atomic(next_part, 1)
            is_part = code.is_less(part, end)
            with b.if_then(is_part):
                b.call(work, [arguments, results, part, parts])
                code.add_atomic(code.field(JOB, job, "done"), 1)
            return is_part

        code.repeat_while(take)

    code.repeat_plainly(integer(0), takers, take_from)
    b.ret_void()
    return function


def _write_release(module: ir.Module) -> ir.Function:
    """One holder of a job less; the last one frees it."""
    function = declare(module, "release", NOTHING, POINTER, internal=True)
    (job,) = function.args
    code = Code.of(function)
    b = code.builder
    before = code.add_atomic(code.field(JOB, job, "holders"), -1)
    with b.if_then(b.icmp_signed("==", before, integer(1))):
        b.call(code.outside("free", NOTHING, POINTER), [job])
    b.ret_void()
    return function


def _answer_metadata(code: Code, frame: ir.Value) -> None:
    """XLA asks with which version of the interface the handler was written."""
    b = code.builder
    extension = code.read(ffi.CALL_FRAME, frame, "extension_start")
    with b.if_then(b.icmp_unsigned("!=", extension, NULL), likely=False):
        kind = code.read(ffi.EXTENSION, extension, "type")
        with b.if_then(b.icmp_signed("==", kind, integer(ffi.METADATA, I32))):
            metadata = code.read(ffi.METADATA_EXTENSION, extension, "metadata")
            version = code.field(ffi.METADATA_OF_HANDLER, metadata, "api_version")
            major, minor = ffi.installed_version() or (ffi.MAJOR_VERSION, 1)
            code.write(
                ffi.API_VERSION, version, major=integer(major, I32), minor=integer(minor, I32)
            )
            code.write(
                ffi.METADATA_OF_HANDLER, metadata, traits=integer(0, I32), state_type=integer(0)
            )
            b.ret(NULL)


def _call_api(
    code: Code, frame: ir.Value, function: str, struct: Struct, **values: ir.Value
) -> ir.Value:
    """Calls a function of XLA's table with a struct of arguments; its error, or null."""
    b = code.builder
    room = code.room(struct.kind)
    end = b.gep(NULL, [integer(1, I32)], source_etype=struct.kind)
    code.write(struct, room, struct_size=b.ptrtoint(end, I64), extension_start=NULL, **values)
    api = code.read(ffi.CALL_FRAME, frame, "api")
    return code.call_pointer(code.read(ffi.API, api, function), POINTER, room)


def _forget(code: Code, frame: ir.Value, error: ir.Value) -> None:
    """Errors of XLA belong to who called."""
    with code.builder.if_then(code.builder.icmp_unsigned("!=", error, NULL), likely=False):
        _call_api(code, frame, "error_destroy", ffi.ERROR_DESTROY, error=error)


def _error(code: Code, module: ir.Module, frame: ir.Value, message: str) -> ir.Value:
    text = bytearray(message.encode() + b"\0")
    constant = ir.Constant(ir.ArrayType(ir.IntType(8), len(text)), text)
    place = ir.GlobalVariable(module, constant.type, "message")
    place.initializer, place.global_constant, place.linkage = constant, True, "internal"
    return _call_api(
        code,
        frame,
        "error_create",
        ffi.ERROR_CREATE,
        message=code.address(place),
        errc=integer(ffi.INVALID_ARGUMENT, I32),
    )


def _num_threads(code: Code, frame: ir.Value) -> ir.Value:
    """The threads of XLA's pool; 1 where it has none."""
    b = code.builder
    threads = code.room(I64)
    b.store(integer(1), threads)
    context = code.read(ffi.CALL_FRAME, frame, "context")
    error = _call_api(
        code,
        frame,
        "thread_pool_num_threads",
        ffi.NUM_THREADS,
        context=context,
        num_threads=threads,
    )
    _forget(code, frame, error)
    return code.load(I64, threads)


def _schedule(
    code: Code,
    frame: ir.Value,
    helpers: ir.Value,
    task: ir.Function,
    job: ir.Value,
    release: ir.Function,
) -> None:
    b = code.builder
    context = code.read(ffi.CALL_FRAME, frame, "context")

    def add_helper(_: ir.Value) -> None:
        error = _call_api(
            code,
            frame,
            "thread_pool_schedule",
            ffi.SCHEDULE,
            context=context,
            task=code.address(task),
            data=job,
        )
        with b.if_then(b.icmp_unsigned("!=", error, NULL), likely=False):
            b.call(release, [job])
        _forget(code, frame, error)

    code.repeat_plainly(integer(0), helpers, add_helper)


def _wait(code: Code, job: ir.Value, parts: ir.Value) -> None:
    """Until the parts that others have begun are done; most are microseconds of work."""
    b = code.builder
    give_way = code.outside("sched_yield", I32)
    spins = code.room(I64)
    b.store(integer(0), spins)

    def look() -> ir.Value:
        done = b.load_atomic(code.field(JOB, job, "done"), "acquire", 8, typ=I64)
        turn = code.load(I64, spins)
        b.store(code.add(turn, integer(1)), spins)
        with b.if_then(code.is_less(integer(_SPINS_BEFORE_YIELDING), turn), likely=False):
            b.call(give_way, [])
        return code.is_less(done, parts)

    code.repeat_while(look)
