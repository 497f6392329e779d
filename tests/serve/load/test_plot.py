"""Pictures are drawn of whatever a sweep has found."""

import pytest

from serve.load.plot import plot_sweep


def figures(rate, **found):
    return {"request_rate": rate, "output_throughput": 10.0} | found


@pytest.mark.parametrize(
    "reports",
    [
        [figures(1.0, median_ttft_ms=5.0, p90_ttft_ms=6.0, p99_ttft_ms=9.0)],  # one token each
        [figures(1.0), figures("inf")],  # nothing was answered
    ],
)
def test_a_sweep_without_some_figures_has_its_picture(tmp_path, reports):
    path = tmp_path / "curve.png"
    plot_sweep(reports, path, title="two\nlines")
    assert path.read_bytes().startswith(b"\x89PNG")
