"""The bars of a start: one a phase, also when two report at once; none where nobody looks."""

import sys

import pytest

from jaxinfer.cli.progress import PhaseBars


def report(bars: PhaseBars) -> None:
    for done in (0, 1, 2):
        bars("load", done, 2)
        bars("compile", done, 2)


def test_phases_side_by_side_have_a_bar_each(
    capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with PhaseBars() as bars:
        report(bars)
        assert {name: bar.n for name, bar in bars._bars.items()} == {"load": 2, "compile": 2}
        assert all(bar.disable for bar in bars._bars.values()), "a bar that is full is closed"


def test_nothing_is_written_to_a_file(capfd: pytest.CaptureFixture) -> None:
    with PhaseBars() as bars:
        report(bars)
    assert capfd.readouterr().err == ""
