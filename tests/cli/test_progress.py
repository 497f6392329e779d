"""The bars of a start: one a phase, also when two report at once; none where nobody looks."""

import sys

import pytest

from jaxinfer.cli.progress import PhaseBars


def report(bars: PhaseBars, *counts: int) -> None:
    for done in counts:
        bars("load", done, 2)
        bars("compile", done, 2)


def test_phases_side_by_side_have_a_bar_each_until_they_are_done(
    capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with PhaseBars() as bars:
        for _ in ("once", "and again"):
            report(bars, 0, 1)
            assert {name: bar.n for name, bar in bars._bars.items()} == {"load": 1, "compile": 1}
            report(bars, 2)
            assert not bars._bars
    written = capfd.readouterr().err
    assert "load" in written
    assert "compile" in written


def test_nothing_is_written_to_a_file(capfd: pytest.CaptureFixture) -> None:
    with PhaseBars() as bars:
        report(bars, 0, 1, 2)
    assert capfd.readouterr().err == ""
