"""One measurement: warm up, run, report."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxinfer.bench.latencies import Objectives
from serve.load.arrivals import Ramp, arrival_times
from serve.load.prompts import Conversation
from serve.load.run import Backend, run_load
from serve.load.timeline import Timeline, report


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """How a load is sent, and what is told of it.

    Attributes:
        rate: conversations that begin in a second, open loop; infinity: as soon as
            ``max_concurrency`` allows, closed loop.
        burstiness: 1 is a Poisson process (``arrival_times``).
        max_concurrency: requests under way at once at most; None: any number.
        objectives: what good requests do not exceed.
        seed: of the arrivals.
    """

    rate: float | Ramp = math.inf
    burstiness: float = 1.0
    max_concurrency: int | None = None
    objectives: Objectives | None = None
    percentiles: Sequence[float] = (99,)
    seed: int = 0

    @property
    def is_open(self) -> bool:
        """Whether requests are sent by the clock."""
        return isinstance(self.rate, Ramp) or math.isfinite(self.rate)


async def measure(
    backend: Backend,
    conversations: Sequence[Conversation],
    settings: LoadSettings,
    *,
    warmups: Sequence[Conversation] = (),
    on_end: Callable[[Timeline], None] = lambda timeline: None,
) -> dict[str, Any]:
    """The figures of ``report`` for these conversations, after some that do not count.

    ``client_cpu_seconds``: what this process computed meanwhile; near ``duration`` it was the
    client that was measured.
    """
    due = None
    if settings.is_open:
        due = arrival_times(
            len(conversations), settings.rate, burstiness=settings.burstiness, seed=settings.seed
        )
    await run_load(backend, warmups, max_concurrency=settings.max_concurrency)
    start, cpu = time.perf_counter(), time.process_time()
    timelines = await run_load(
        backend, conversations, due=due, max_concurrency=settings.max_concurrency, on_end=on_end
    )
    duration, cpu = time.perf_counter() - start, time.process_time() - cpu
    figures = report(
        timelines,
        duration=duration,
        objectives=settings.objectives,
        percentiles=settings.percentiles,
    )
    return _described(settings) | figures | {"client_cpu_seconds": cpu}


def _described(settings: LoadSettings) -> dict[str, Any]:
    told: dict[str, Any] = {"max_concurrency": settings.max_concurrency}
    if isinstance(settings.rate, Ramp):
        ramp = settings.rate
        return told | {
            "ramp_up_strategy": ramp.kind,
            "ramp_up_start_rps": ramp.start,
            "ramp_up_end_rps": ramp.end,
            "burstiness": settings.burstiness,
        }
    if not settings.is_open:
        return told | {"request_rate": "inf"}
    return told | {"request_rate": settings.rate, "burstiness": settings.burstiness}
