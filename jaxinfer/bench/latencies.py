"""Times of single requests, and their statistics under the names that ``vllm bench`` uses."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jaxinfer.outputs import RequestOutput

if TYPE_CHECKING:
    from jaxinfer.llm import RequestStream

#: Milliseconds by ``ttft``, ``tpot`` or ``e2el`` that a request must not exceed.
Objectives = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class RequestTimes:
    """Of one request, in milliseconds from its submission.

    ``ttft``: to the first token. ``tpot``: a later token, on average; None without one. ``itl``:
    every gap between two arrivals of tokens. ``e2el``: to the last token.
    """

    ttft: float
    tpot: float | None
    itl: tuple[float, ...]
    e2el: float

    def meets(self, objectives: Objectives) -> bool:
        """Whether no objective is exceeded; without later tokens ``tpot`` is met."""
        return all((getattr(self, name) or 0.0) <= most for name, most in objectives.items())


def drain(stream: "RequestStream") -> dict[str, list[float]]:
    """Takes all events of a stream; seconds at which tokens came, by request."""
    arrivals: dict[str, list[float]] = {request_id: [] for request_id in stream.request_ids}
    with stream:
        for event in stream:
            if event.token_ids:
                arrivals[event.request_id].append(time.perf_counter())
    return arrivals


def request_times(output: RequestOutput, arrivals: Sequence[float]) -> RequestTimes | None:
    """None for a request that failed."""
    metrics = output.metrics
    [sample] = output.outputs
    if sample.finish_reason not in ("stop", "length") or metrics is None:
        return None
    assert metrics.first_token_time is not None
    assert metrics.last_token_time is not None
    ttft = 1e3 * (metrics.first_token_time - metrics.arrival_time)
    e2el = 1e3 * (metrics.last_token_time - metrics.arrival_time)
    num_later = len(sample.token_ids) - 1
    return RequestTimes(
        ttft=ttft,
        tpot=(e2el - ttft) / num_later if num_later else None,
        itl=tuple(1e3 * np.diff(arrivals)),
        e2el=e2el,
    )


def statistics(
    times: Iterable[RequestTimes], percentiles: Sequence[float] = (99,)
) -> dict[str, float]:
    """``mean_ttft_ms``, ``median_ttft_ms``, ``std_ttft_ms``, ``p99_ttft_ms``, and so for the other
    three."""
    times = list(times)
    samples = {
        "ttft": [entry.ttft for entry in times],
        "tpot": [entry.tpot for entry in times if entry.tpot is not None],
        "itl": [gap for entry in times for gap in entry.itl],
        "e2el": [entry.e2el for entry in times],
    }
    found = {}
    for name, values in samples.items():
        if values:
            found[f"mean_{name}_ms"] = float(np.mean(values))
            found[f"median_{name}_ms"] = float(np.median(values))
            found[f"std_{name}_ms"] = float(np.std(values))
            for percentile in percentiles:
                of_all = float(np.percentile(values, percentile))
                found[f"p{percentile:g}_{name}_ms"] = of_all
    return found
