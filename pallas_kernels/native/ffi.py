"""The C structs that XLA's foreign function interface passes, as far as they are used here.

As in ``xla/ffi/api/c_api.h`` that jaxlib brings, with pointers of 64 bits. A major version stands
for one layout of these structs, a minor one for what was added at their ends.
"""

import functools
import re
from pathlib import Path

import jax

from pallas_kernels.native.code import I32, I64, POINTER, Struct

MAJOR_VERSION = 0
METADATA = 1
EXECUTE = 3
INVALID_ARGUMENT = 3

#: How every struct begins.
_BASE = {"struct_size": I64, "extension_start": POINTER}

API_VERSION = Struct(**_BASE, major=I32, minor=I32)
API = Struct(
    **_BASE,
    api_version=API_VERSION,
    internal_api=POINTER,
    error_create=POINTER,
    error_get_message=POINTER,
    error_destroy=POINTER,
    handler_register=POINTER,
    stream_get=POINTER,
    type_register=POINTER,
    execution_context_get=POINTER,
    state_set=POINTER,
    state_get=POINTER,
    device_memory_allocate=POINTER,
    device_memory_free=POINTER,
    thread_pool_schedule=POINTER,
    thread_pool_num_threads=POINTER,
)
VALUES = Struct(**_BASE, size=I64, types=POINTER, values=POINTER)
"""Both the arguments and the results of a call."""
CALL_FRAME = Struct(
    **_BASE, api=POINTER, context=POINTER, stage=I32, arguments=VALUES, results=VALUES
)
BUFFER = Struct(**_BASE, dtype=I32, data=POINTER, rank=I64, dims=POINTER)
EXTENSION = Struct(struct_size=I64, type=I32, next=POINTER)
METADATA_EXTENSION = Struct(base=EXTENSION, metadata=POINTER)
METADATA_OF_HANDLER = Struct(struct_size=I64, api_version=API_VERSION, traits=I32, state_type=I64)
ERROR_CREATE = Struct(**_BASE, message=POINTER, errc=I32)
ERROR_DESTROY = Struct(**_BASE, error=POINTER)
SCHEDULE = Struct(**_BASE, context=POINTER, task=POINTER, data=POINTER)
NUM_THREADS = Struct(**_BASE, context=POINTER, num_threads=POINTER)


@functools.cache
def installed_version() -> tuple[int, int] | None:
    """The version (major, minor) of the interface that jaxlib has; None where it does not say."""
    header = Path(jax.ffi.include_dir(), "xla", "ffi", "api", "c_api.h")
    if not header.is_file():
        return None
    numbers = re.findall(r"#define XLA_FFI_API_(MAJOR|MINOR) (\d+)", header.read_text())
    version = {name: int(number) for name, number in numbers}
    return (version["MAJOR"], version["MINOR"]) if len(version) == 2 else None
