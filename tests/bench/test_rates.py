"""Rates of a run that can be worked out by hand."""

from jaxinfer.bench.rates import rates


def test_rates_are_of_a_second():
    assert rates(num_requests=2, num_inputs=10, num_outputs=6, duration=4.0) == {
        "duration": 4.0,
        "total_input_tokens": 10,
        "total_output_tokens": 6,
        "request_throughput": 0.5,
        "output_throughput": 1.5,
        "total_token_throughput": 4.0,
    }


def test_a_run_that_took_no_time_has_no_rates():
    found = rates(num_requests=1, num_inputs=1, num_outputs=1, duration=0.0)
    assert {value for name, value in found.items() if name.endswith("throughput")} == {None}
