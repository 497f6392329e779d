"""What happened to each request of a run, and the figures of all of them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jaxinfer.bench.latencies import Objectives, RequestTimes, statistics
from jaxinfer.bench.rates import rates


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """One request; times in seconds of one clock.

    Attributes:
        due: when it should have been sent; None: when there was room.
        arrivals: of chunks that brought tokens.
        ended: when nothing of it was left.
        error: what it failed with; None: it has all its tokens.
        cached_tokens: of the prompt; None: the server did not say.
    """

    sent: float
    ended: float
    due: float | None = None
    arrivals: tuple[float, ...] = field(default=(), repr=False)
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int | None = None
    error: str | None = None

    @property
    def times(self) -> RequestTimes:
        """Of a request that did not fail: TTFT from sending to the first chunk with a token, E2EL
        to the last one, TPOT the mean over the tokens between them, ITL every gap between chunks.
        """
        ttft = 1e3 * (self.arrivals[0] - self.sent)
        e2el = 1e3 * (self.arrivals[-1] - self.sent)
        num_later = self.output_tokens - 1
        return RequestTimes(
            ttft=ttft,
            tpot=(e2el - ttft) / num_later if num_later > 0 else None,
            itl=tuple(1e3 * np.diff(self.arrivals)),
            e2el=e2el,
        )


def report(
    timelines: Sequence[Timeline],
    *,
    duration: float,
    objectives: Objectives | None = None,
    percentiles: Sequence[float] = (99,),
) -> dict[str, Any]:
    """The figures of a run of ``duration`` seconds, by the names of ``vllm bench serve``.

    ``request_goodput`` is None where there are no objectives. Besides them: ``mean_``, ``p99_`` and
    ``max_send_lag_ms``, how late requests were sent, because what was sent late was not the load
    that was asked for; ``total_cached_tokens`` of the prompts, where the server tells; ``errors``,
    each kind with how often it came.
    """
    completed = [timeline for timeline in timelines if timeline.error is None]
    times = [timeline.times for timeline in completed]
    figures: dict[str, Any] = {
        "completed": len(completed),
        "failed": len(timelines) - len(completed),
        "max_concurrent_requests": max_concurrency(timelines),
    } | rates(
        num_requests=len(completed),
        num_inputs=sum(timeline.prompt_tokens for timeline in completed),
        num_outputs=sum(timeline.output_tokens for timeline in completed),
        duration=duration,
    )
    good = sum(entry.meets(objectives) for entry in times) if objectives else None
    figures["request_goodput"] = None if good is None else good / duration
    cached = [entry.cached_tokens for entry in completed if entry.cached_tokens is not None]
    if cached:
        figures["total_cached_tokens"] = sum(cached)
    return figures | statistics(times, percentiles) | _lags(timelines) | _errors(timelines)


def max_concurrency(timelines: Iterable[Timeline]) -> int:
    """The most requests that were under way at once; one that ends when another begins is not
    beside it."""
    changes = [(entry.sent, 1) for entry in timelines] + [(entry.ended, -1) for entry in timelines]
    most = now = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most


def _lags(timelines: Iterable[Timeline]) -> dict[str, float]:
    lags = [1e3 * (entry.sent - entry.due) for entry in timelines if entry.due is not None]
    if not lags:
        return {}
    return {
        "mean_send_lag_ms": float(np.mean(lags)),
        "p99_send_lag_ms": float(np.percentile(lags, 99)),
        "max_send_lag_ms": max(lags),
    }


def _errors(timelines: Iterable[Timeline]) -> dict[str, dict[str, int]]:
    counts: dict[str, int] = {}
    for entry in timelines:
        if entry.error is not None:
            counts[entry.error] = counts.get(entry.error, 0) + 1
    return {"errors": counts} if counts else {}
