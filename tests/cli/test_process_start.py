"""What the process of the command line sets before anything asks for a device."""

import os

import pytest

from jaxinfer.cli import __main__ as process


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"XLA_CLIENT_MEM_FRACTION": "0.95"}),
        ({"XLA_CLIENT_MEM_FRACTION": "0.5"}, {"XLA_CLIENT_MEM_FRACTION": "0.5"}),
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}),
    ],
    ids=["nothing", "its name", "its former name"],
)
def test_a_gpu_is_taken_almost_whole_unless_somebody_said_otherwise(given, expected, monkeypatch):
    kept = {name: x for name, x in os.environ.items() if "MEM_FRACTION" not in name}
    monkeypatch.setattr(os, "environ", kept | given)
    monkeypatch.setattr(process, "main", lambda: 0)
    with pytest.raises(SystemExit):
        process.run()
    assert {n: x for n, x in os.environ.items() if "MEM_FRACTION" in n} == expected
