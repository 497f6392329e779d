"""How long the devices of a profile were idle, and what they did: ``python -m jaxinfer.bench.idle
DIRECTORY`` reads the newest profile below the directory, as ``LLM.start_profile`` writes it.

On a GPU, XLA leaves its graphs (command buffers) out while a profile is taken, unless ``XLA_FLAGS``
holds ``--xla_enable_command_buffers_during_profiling=true``. ``graph_launches`` counts those that
the host started.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jax.profiler import ProfileData

_STREAMS = {"/device:GPU": "Stream", "/device:TPU": "XLA Ops"}
"""How the lines that hold what ran begin, by how the name of the device does."""

_NUM_NAMES = 20


def idle_of(profile: ProfileData) -> dict[str, Any]:
    """Figures for each device, by its name in the profile.

    ``span_ms`` from the first start to the last end; ``busy_ms``, in which anything ran;
    ``idle_share`` of the span; ``largest_gap_ms``; ``num_events``; ``ms_by_name`` of the twenty
    that took longest, overlaps counted each for itself. Beside the devices: ``graph_launches``.
    """
    report: dict[str, Any] = {}
    graph_launches = 0
    for plane in profile.planes:
        if not plane.name.startswith("/device:"):
            graph_launches += sum(
                "GraphLaunch" in event.name for line in plane.lines for event in line.events
            )
            continue
        streams = _STREAMS.get(plane.name.rpartition(":")[0])
        if streams is None:
            continue
        intervals: list[tuple[float, float]] = []
        by_name: Counter[str] = Counter()
        for line in plane.lines:
            if line.name.startswith(streams):
                for event in line.events:
                    intervals.append((event.start_ns, event.start_ns + event.duration_ns))
                    by_name[event.name] += event.duration_ns
        if intervals:
            report[plane.name] = _figures(intervals) | {
                "ms_by_name": {n: ns / 1e6 for n, ns in by_name.most_common(_NUM_NAMES)}
            }
    return report | {"graph_launches": graph_launches}


def _figures(intervals: Iterable[tuple[float, float]]) -> dict[str, float]:
    (first, end), *others = sorted(intervals)
    start, idle, largest = first, 0.0, 0.0
    for begin, stop in others:
        gap = max(begin - end, 0.0)
        idle, largest = idle + gap, max(largest, gap)
        end = max(end, stop)
    span = end - start
    return {
        "span_ms": span / 1e6,
        "busy_ms": (span - idle) / 1e6,
        "idle_share": idle / span if span else 0.0,
        "largest_gap_ms": largest / 1e6,
        "num_events": len(others) + 1,
    }


def newest_profile(directory: Path) -> Path:
    """Raises ``FileNotFoundError`` where there is none."""
    found = sorted(directory.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(f"{directory} holds no profile (*.xplane.pb)")
    return found[-1]


def main(argv: list[str] | None = None) -> None:
    """The command; the last line of standard output is JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args(argv)
    try:
        path = newest_profile(arguments.directory)
    except FileNotFoundError as error:
        parser.error(str(error))
    print(json.dumps(idle_of(ProfileData.from_file(str(path)))))


if __name__ == "__main__":
    main()
