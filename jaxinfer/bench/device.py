"""What the machine does, measured: its memory's peak, its compilations."""

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from jax import monitoring

_COMPILED = "/jax/core/compile/backend_compile_duration"


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
