"""What a profile says of a device's time, on one that was written by hand."""

import json
import os

import pytest
from jax.profiler import ProfileData

from jaxinfer.bench import idle

US = 10**6  # picoseconds


def event(name: int, start_us: int, length_us: int) -> str:
    return (
        f"events {{ metadata_id: {name} offset_ps: {start_us * US} duration_ps: {length_us * US} }}"
    )


def plane(name: str, lines: dict[str, list[str]], names: dict[int, str]) -> str:
    written = "".join(
        f'lines {{ id: {number} name: "{line}" timestamp_ns: 5000 {" ".join(events)} }}'
        for number, (line, events) in enumerate(lines.items())
    )
    known = "".join(
        f'event_metadata {{ key: {key} value {{ id: {key} name: "{text}" }} }}'
        for key, text in names.items()
    )
    return f'planes {{ name: "{name}" {written} {known} }}'


GPU = plane(
    "/device:GPU:0",
    {
        # From 10 to 60, with 30 to 40 idle: the second stream fills what the first one leaves.
        "Stream #7(Compute)": [event(1, 10, 10), event(2, 50, 10)],
        "Stream #8(Memcpy)": [event(1, 15, 15), event(1, 40, 12)],
        "XLA Modules": [event(3, 0, 100)],
    },
    {1: "attend", 2: "multiply", 3: "jit_decode"},
)
HOST = plane(
    "/host:CPU",
    {"python": [event(1, 0, 1), event(2, 3, 90), event(1, 95, 1)]},
    {1: "cuGraphLaunch", 2: "wait"},
)


def test_what_ran_on_any_stream_is_not_idle(tmp_path, capsys):
    older, newer = tmp_path / "a.xplane.pb", tmp_path / "run" / "b.xplane.pb"
    newer.parent.mkdir()
    older.write_bytes(ProfileData.text_proto_to_serialized_xspace(HOST))
    newer.write_bytes(ProfileData.text_proto_to_serialized_xspace(GPU + HOST))
    os.utime(older, (1, 1))
    idle.main([str(tmp_path)])
    report = json.loads(capsys.readouterr().out)
    device = report.pop("/device:GPU:0")
    assert report == {"graph_launches": 2}
    assert device.pop("ms_by_name") == pytest.approx({"attend": 0.037, "multiply": 0.01})
    assert device == pytest.approx(
        {
            "span_ms": 0.05,
            "busy_ms": 0.04,
            "idle_share": 0.2,
            "largest_gap_ms": 0.01,
            "num_events": 4,
        }
    )


def test_a_directory_without_a_profile_is_told(tmp_path, capsys):
    with pytest.raises(SystemExit):
        idle.main([str(tmp_path)])
    assert "holds no profile" in capsys.readouterr().err
