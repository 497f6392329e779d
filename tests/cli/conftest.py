"""Runs the command in this process, on one tiny model of random weights that is loaded once."""

import json

import pytest

from jaxinfer import LLM
from jaxinfer.cli import loading, main
from tests.llm.tiny_model import SETTINGS, write_tiny_model


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def tiny_llm(tiny_directory):
    with LLM(tiny_directory, **SETTINGS) as llm:
        yield llm


@pytest.fixture
def loaded(tiny_llm, monkeypatch):
    """The commands get this LLM, whatever they ask for; what they asked for is in the list."""
    asked = []

    def give(**settings):
        asked.append(settings)
        return _Borrowed(tiny_llm)

    for command in ("generate", "chat", "score", "bench", "bench_streaming"):
        monkeypatch.setattr(f"jaxinfer.cli.{command}.load_llm", give)
    assert loading.load_llm is not give
    return asked


class _Borrowed:
    """An LLM that outlives the ``with`` block of its borrower."""

    def __init__(self, llm):
        self._llm = llm

    def __enter__(self):
        return self._llm

    def __exit__(self, *exc_info):
        assert self._llm.engine.num_unfinished == 0


@pytest.fixture
def run(capsys):
    """``run(*words) -> (status, standard output, standard error)``."""

    def run(*words):
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def run_json(run):
    """``run_json(*words) ->`` the documents that the command printed; it succeeded."""

    def run_json(*words):
        status, out, err = run(*words, "--json")
        assert status == 0, err
        return [json.loads(line) for line in out.splitlines()]

    return run_json
