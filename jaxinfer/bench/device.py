"""What the machine does, measured: its memory's speed, its memory's peak, its compilations."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import jax.numpy as jnp
from jax import monitoring

_COMPILED = "/jax/core/compile/backend_compile_duration"
_REPEATS = 5


def copy_bandwidth(nbytes: int = 256 * 2**20) -> float:
    """Bytes a second that the first device reads and writes together, the best of five passes.

    Each pass reads all of an array and writes it in place: new memory would first have to be found.
    """
    data = jnp.zeros((nbytes // 4,), jnp.float32)
    add_one = jax.jit(lambda x: x + jnp.float32(1), donate_argnums=0).lower(data).compile()
    data = add_one(data).block_until_ready()
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        data = add_one(data).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * data.nbytes / min(seconds)


def peak_memory_bytes() -> int:
    """Of the first device; on the CPU, the most that this process ever held."""
    stats = jax.devices()[0].memory_stats()
    if stats and "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class CompileCount:
    """How many programs were compiled, or fetched from the compilation cache, in a block."""

    def __init__(self) -> None:
        self.count = 0

    def note(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        """A listener of ``jax.monitoring``."""
        self.count += event == _COMPILED


@contextmanager
def counted_compiles() -> Iterator[CompileCount]:
    """Counts the compilations of this block."""
    counter = CompileCount()
    monitoring.register_event_duration_secs_listener(counter.note)
    try:
        yield counter
    finally:
        monitoring.unregister_event_duration_listener(counter.note)
