"""Where models and compiled programs are kept, by the environment."""

from pathlib import Path

import pytest

from jaxinfer.checkpoint.cache_directory import cache_directory
from jaxinfer.checkpoint.known import default_cache_dir
from jaxinfer.errors import ModelNotFound


@pytest.fixture
def set_environment(monkeypatch, tmp_path):
    """``set_environment(**variables)``: these alone decide, with a home directory."""

    def set_environment(**variables):
        for name in ("JAXINFER_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(Path, "home", lambda: tmp_path)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_environment


@pytest.mark.parametrize(
    ("variables", "directory"),
    [
        ({"JAXINFER_CACHE": "/ours", "XDG_CACHE_HOME": "/shared"}, "/ours"),
        ({"JAXINFER_CACHE": "", "XDG_CACHE_HOME": "/shared"}, "/shared/jaxinfer"),
        ({"XDG_CACHE_HOME": "/shared"}, "/shared/jaxinfer"),
        ({"XDG_CACHE_HOME": "relative"}, None),
        ({"XDG_CACHE_HOME": ""}, None),
        ({}, None),
    ],
)
def test_ours_comes_before_the_users_and_that_before_home(
    set_environment, tmp_path, variables, directory
):
    set_environment(**variables)
    assert cache_directory() == Path(directory or tmp_path / ".cache" / "jaxinfer")


def test_models_are_beside_programs_unless_the_directory_is_ours_alone(set_environment):
    set_environment(XDG_CACHE_HOME="/shared")
    assert default_cache_dir() == Path("/shared/jaxinfer/models")
    set_environment(JAXINFER_CACHE="/ours")
    assert default_cache_dir() == Path("/ours")


def test_without_a_home_models_are_nowhere_until_somebody_says_where(set_environment, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    set_environment()
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(ModelNotFound, match="Set JAXINFER_CACHE"):
        default_cache_dir()
    set_environment(JAXINFER_CACHE="/ours")
    assert default_cache_dir() == Path("/ours")
