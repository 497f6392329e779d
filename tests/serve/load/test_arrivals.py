"""Arrival processes, by what their laws say."""

import math

import numpy as np
import pytest

from jaxinfer.errors import InvalidParameter
from serve.load.arrivals import Ramp, arrival_times

NUM = 20_000


def gaps(rate, **options):
    return np.diff([0.0, *arrival_times(NUM, rate, **options)])


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_have_the_mean_and_spread_of_their_law(burstiness):
    """A gamma law of shape k has a coefficient of variation of 1 / sqrt(k); the bounds are five
    standard errors of NUM draws."""
    drawn = gaps(8.0, burstiness=burstiness)
    spread = 1 / math.sqrt(burstiness)
    assert drawn.mean() * 8 == pytest.approx(1, abs=5 * spread / math.sqrt(NUM))
    kurtosis = 3 + 6 / burstiness
    error = math.sqrt((kurtosis - 1) / NUM) / 2
    assert drawn.std() / drawn.mean() == pytest.approx(spread, rel=5 * error + 0.02)


def test_a_poisson_process_brings_as_many_as_a_poisson_law():
    times = np.cumsum(gaps(8.0))
    counts, _ = np.histogram(times, bins=np.arange(0, int(times[-1])))
    assert counts.mean() == pytest.approx(8, rel=0.05)
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.15)


def test_without_bursts_there_is_a_beat():
    assert arrival_times(4, 2.0, burstiness=math.inf) == [0.5, 1.0, 1.5, 2.0]


def test_an_infinite_rate_is_all_at_once():
    assert arrival_times(3, math.inf) == [0, 0, 0]


def test_the_seed_says_which_times():
    assert arrival_times(9, 2.0, seed=1) == arrival_times(9, 2.0, seed=1)
    assert arrival_times(9, 2.0, seed=1) != arrival_times(9, 2.0, seed=2)


def test_ramps_go_from_one_rate_to_the_other():
    linear, exponential = (
        Ramp(kind="linear", start=1, end=9),
        Ramp(kind="exponential", start=1, end=9),
    )
    assert [linear.rate(done) for done in (0, 0.5, 1)] == [1, 5, 9]
    assert [exponential.rate(done) for done in (0, 0.5, 1)] == pytest.approx([1, 3, 9])
    assert arrival_times(3, linear, burstiness=math.inf) == pytest.approx(
        [1, 1 + 1 / 5, 1 + 1 / 5 + 1 / 9]
    )
    drawn = gaps(exponential)
    assert drawn[: NUM // 100].mean() == pytest.approx(1, rel=0.4)
    assert drawn[-NUM // 100 :].mean() == pytest.approx(1 / 9, rel=0.4)


@pytest.mark.parametrize("rate", [0, -1.0, math.nan])
def test_rates_that_never_come_are_refused(rate):
    with pytest.raises(InvalidParameter, match="rate"):
        arrival_times(1, rate)
    with pytest.raises(InvalidParameter, match="burstiness"):
        arrival_times(1, 1.0, burstiness=rate)
    with pytest.raises(InvalidParameter, match="start"):
        Ramp(kind="linear", start=rate, end=1)


def test_a_ramp_of_another_kind_is_refused():
    with pytest.raises(InvalidParameter, match="steep"):
        Ramp(kind="steep", start=1, end=2)
