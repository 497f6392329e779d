"""One tiny LLM for all tests of a file: its programs compile once."""

import pytest

from jaxinfer import LLM
from tests.llm.tiny_model import SETTINGS, write_tiny_model


@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def llm(tiny_directory):
    with LLM(tiny_directory, **SETTINGS) as llm:
        yield llm
