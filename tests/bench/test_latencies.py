"""Times of requests, worked out by hand."""

import pytest

from jaxinfer.bench.latencies import RequestTimes, request_times, statistics
from jaxinfer.outputs import CompletionOutput, RequestMetrics, RequestOutput


def output(*, num_tokens=3, finish_reason="length"):
    metrics = RequestMetrics(arrival_time=10.0, first_token_time=10.5, last_token_time=10.7)
    sample = CompletionOutput(
        index=0, text="", token_ids=(1,) * num_tokens, finish_reason=finish_reason
    )
    return RequestOutput(
        request_id="0", prompt=None, prompt_token_ids=(1,), outputs=(sample,), metrics=metrics
    )


def test_times_count_from_submission_and_tpot_leaves_the_first_token_out():
    times = request_times(output(), [10.5, 10.65, 10.7])
    assert times.ttft == pytest.approx(500)
    assert times.e2el == pytest.approx(700)
    assert times.tpot == pytest.approx(100)
    assert times.itl == pytest.approx((150, 50))


def test_a_single_token_has_no_time_per_later_token():
    times = request_times(output(num_tokens=1), [10.5])
    assert (times.tpot, times.itl) == (None, ())
    assert "mean_tpot_ms" not in statistics([times])


def test_what_failed_has_no_times():
    assert request_times(output(finish_reason="error"), []) is None


def test_objectives_are_met_up_to_their_value():
    times = RequestTimes(ttft=500.0, tpot=None, itl=(), e2el=700.0)
    assert times.meets({"ttft": 500.0, "tpot": 0.0})
    assert not times.meets({"ttft": 499.0})
    assert not times.meets({"ttft": 500.0, "e2el": 600.0})


def test_statistics_have_vllms_names():
    times = [RequestTimes(ttft=t, tpot=t / 10, itl=(t / 10,), e2el=2 * t) for t in (100.0, 300.0)]
    found = statistics(times)
    assert found["mean_ttft_ms"] == 200
    assert found["median_tpot_ms"] == 20
    assert found["p99_e2el_ms"] == pytest.approx(596)
    assert found["std_ttft_ms"] == 100
    assert len(found) == 16
    assert statistics(times, percentiles=(50, 99.9))["p50_itl_ms"] == 20
