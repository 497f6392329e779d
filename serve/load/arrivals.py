"""When the requests of an open loop are sent: whether or not earlier ones have ended."""

import math
from dataclasses import dataclass

import numpy as np

from jaxinfer.errors import InvalidParameter

RAMPS = ("linear", "exponential")


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """A rate that changes from the first request to the last one, in equal steps or by equal
    factors; requests a second."""

    kind: str
    start: float
    end: float

    def __post_init__(self) -> None:
        if self.kind not in RAMPS:
            raise InvalidParameter(f"ramp {self.kind!r} is not one of {', '.join(RAMPS)}")
        for name, rate in (("start", self.start), ("end", self.end)):
            if not 0 < rate < math.inf:
                raise InvalidParameter(f"{name} = {rate} must be finite and above 0")

    def rate(self, done: float) -> float:
        """When the share ``done`` (0 to 1) of the requests has been sent."""
        if self.kind == "linear":
            return self.start + (self.end - self.start) * done
        return self.start * (self.end / self.start) ** done


def arrival_times(
    num_requests: int, rate: float | Ramp, *, burstiness: float = 1.0, seed: int = 0
) -> list[float]:
    """Seconds from the start at which requests are due.

    The gaps are drawn from a gamma distribution of shape ``burstiness``: 1 is a Poisson process,
    below 1 requests come in bursts, above 1 more evenly, infinity is a beat. Their mean is one over
    the rate; an infinite rate is all at once.

    Raises:
        InvalidParameter: a rate or burstiness that is not above 0.
    """
    if not burstiness > 0:
        raise InvalidParameter(f"burstiness = {burstiness} must be above 0")
    if not isinstance(rate, Ramp) and not rate > 0:
        raise InvalidParameter(f"request rate = {rate} must be above 0; inf sends all at once")
    draw = np.random.default_rng(seed)
    now, times = 0.0, []
    for number in range(num_requests):
        done = number / (num_requests - 1) if num_requests > 1 else 0.0
        mean = 1 / (rate.rate(done) if isinstance(rate, Ramp) else rate)
        if math.isinf(burstiness):
            now += mean
        else:
            now += float(draw.gamma(burstiness, mean / burstiness))
        times.append(now)
    return times
