"""Figures of runs that were written down by hand."""

import pytest

from serve.load.timeline import Timeline, max_concurrency, report

#: Five tokens in three chunks: at 1.5, 1.7 and 2.5 s, sent at 1.0 s and 0.25 s too late.
STREAM = Timeline(
    due=0.75,
    sent=1.0,
    ended=2.625,
    arrivals=(1.5, 1.75, 2.5),
    prompt_tokens=7,
    output_tokens=5,
    cached_tokens=4,
)
SINGLE = Timeline(
    due=2.0, sent=2.0, ended=4.0, arrivals=(4.0,), prompt_tokens=3, output_tokens=1, cached_tokens=0
)
FAILED = Timeline(due=2.0, sent=2.125, ended=2.25, error="Unavailable: gone", prompt_tokens=99)


def test_times_of_a_stream_are_those_of_the_definitions():
    times = STREAM.times
    assert times.ttft == 500
    assert times.e2el == 1500
    assert times.tpot == 250  # (1500 - 500) / (5 - 1), by tokens and not by chunks
    assert times.itl == (250, 750)


def test_a_single_token_has_no_time_per_later_token():
    assert (SINGLE.times.tpot, SINGLE.times.itl) == (None, ())


def test_counts_and_throughputs_leave_out_what_failed():
    figures = report([STREAM, SINGLE, FAILED, FAILED], duration=4.0)
    assert figures["duration"] == 4.0
    assert (figures["completed"], figures["failed"]) == (2, 2)
    assert (figures["total_input_tokens"], figures["total_output_tokens"]) == (10, 6)
    assert figures["request_throughput"] == 0.5
    assert figures["output_throughput"] == 1.5
    assert figures["total_token_throughput"] == 4.0
    assert figures["total_cached_tokens"] == 4
    assert figures["errors"] == {"Unavailable: gone": 2}


def test_statistics_have_vllms_names():
    figures = report([STREAM, SINGLE], duration=4.0, percentiles=(50, 99.9))
    assert figures["mean_ttft_ms"] == 1250
    assert figures["median_ttft_ms"] == figures["p50_ttft_ms"] == 1250
    assert figures["std_ttft_ms"] == 750
    assert figures["p99.9_ttft_ms"] == pytest.approx(500 + 0.999 * 1500)
    assert figures["mean_tpot_ms"] == 250
    assert figures["mean_itl_ms"] == 500
    assert figures["mean_e2el_ms"] == 1750
    assert "p99_ttft_ms" not in figures
    assert "p99_e2el_ms" in report([STREAM], duration=1.0)


def test_goodput_counts_requests_that_meet_all_objectives():
    def goodput(**objectives):
        return report([STREAM, SINGLE, FAILED], duration=4.0, objectives=objectives)[
            "request_goodput"
        ]

    assert goodput(ttft=500) == 0.25
    assert goodput(ttft=2000, tpot=250) == 0.5
    assert goodput(ttft=2000, tpot=249) == 0.25  # without later tokens it is met
    assert goodput(e2el=1) == 0
    assert report([STREAM], duration=4.0)["request_goodput"] is None


def test_lags_are_of_all_requests_that_were_due():
    figures = report([STREAM, SINGLE, FAILED], duration=4.0)
    assert figures["mean_send_lag_ms"] == 125
    assert figures["max_send_lag_ms"] == 250
    closed = Timeline(sent=1.0, ended=2.0, arrivals=(2.0,), output_tokens=1)
    assert not any("lag" in name for name in report([closed], duration=1.0))


def test_what_ends_when_another_begins_is_not_beside_it():
    def spans(*pairs):
        return [Timeline(sent=sent, ended=ended) for sent, ended in pairs]

    assert max_concurrency(spans((0, 1), (1, 2), (2, 3))) == 1
    assert max_concurrency(spans((0, 3), (1, 2), (1.5, 4))) == 3
    assert max_concurrency([]) == 0


def test_a_run_in_which_all_failed_has_figures():
    figures = report([FAILED], duration=1.0, objectives={"ttft": 1.0})
    assert (figures["completed"], figures["request_goodput"]) == (0, 0)
    assert "mean_ttft_ms" not in figures
