"""A sweep over request rates as a picture."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxinfer.errors import Unsupported

#: A panel a row: the metric, what its axis says, and its scale. Queues make the first token wait a
#: hundred times longer, or not at all.
_PANELS = (
    ("ttft", "time to first token (ms)", "log"),
    ("tpot", "time per output token (ms)", "linear"),
)


def plot_sweep(reports: Sequence[Mapping[str, Any]], path: Path, *, title: str) -> None:
    """Latency over throughput, a point a rate, which stands beside it.

    Raises:
        Unsupported: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise Unsupported(f"{error}: pip install 'jaxinfer[plot]'") from error
    figure = Figure(figsize=(7, 7.5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.02, ha="left")
    panels = figure.subplots(len(_PANELS), sharex=True)
    for axes, (metric, words, scale) in zip(panels, _PANELS, strict=True):
        _draw(axes, reports, metric)
        axes.set_yscale(scale)
        if scale == "linear":
            axes.set_ylim(bottom=0)
        axes.set_ylabel(words)
        axes.grid(alpha=0.3, which="both")
    # Outside: a server that is overloaded turns the curve back to where there was room.
    lines = panels[0].get_legend_handles_labels()
    figure.legend(*lines, title="beside the points: requests/s", loc="outside upper right", ncols=2)
    panels[-1].set_xlabel("output throughput (tokens/s)")
    figure.savefig(path, dpi=150)


def _draw(axes: Any, reports: Sequence[Mapping[str, Any]], metric: str) -> None:
    tail = _tail(reports, metric)
    axes.margins(x=0.08, y=0.3)
    for statistic, style, colour in (("median", "o-", "tab:blue"), (tail, "s--", "tab:orange")):
        key = f"{statistic}_{metric}_ms"
        points = [entry for entry in reports if key in entry]
        throughputs = [entry["output_throughput"] for entry in points]
        latencies = [entry[key] for entry in points]
        axes.plot(throughputs, latencies, style, color=colour, label=statistic)
        if statistic == "median":
            continue
        for entry, x, y in zip(points, throughputs, latencies, strict=True):
            rate = entry["request_rate"]
            axes.annotate(
                "∞" if rate == "inf" else f"{rate:g}",
                (x, y),
                xytext=(-3, 7),
                textcoords="offset points",
                ha="right",
                fontsize=9,
            )


def _tail(reports: Sequence[Mapping[str, Any]], metric: str) -> str:
    """The highest percentile that was asked for."""
    keys = (re.fullmatch(rf"(p([\d.]+))_{metric}_ms", key) for entry in reports for key in entry)
    found = [(float(key[2]), key[1]) for key in keys if key is not None]
    return max(found, default=(0.0, "median"))[1]
