"""Where compiled programs are kept."""

from pathlib import Path

import jax
import pytest

from jaxinfer.llm.xla_cache import default_xla_cache_dir, keep_compiled_programs

NAMES = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")


@pytest.fixture
def settings(monkeypatch):
    """jax's settings as a new process has them; put back afterwards."""
    before = {name: getattr(jax.config, name) for name in NAMES}
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    for name in ("JAXINFER_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    yield lambda: tuple(getattr(jax.config, name) for name in NAMES)
    for name, value in before.items():
        jax.config.update(name, value)


def no_home():
    raise RuntimeError("no home directory")


def test_the_cache_directory_of_the_environment_holds_programs_too(settings, monkeypatch, tmp_path):
    monkeypatch.setenv("JAXINFER_CACHE", str(tmp_path))
    keep_compiled_programs()
    assert settings() == (str(tmp_path / "xla"), 0.0)


def test_programs_are_in_the_cache_directory_of_the_user_otherwise(settings, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_compiled_programs()
    assert settings() == (str(tmp_path / "jaxinfer" / "xla"), 0.0)


def test_without_a_home_nothing_is_kept(settings, monkeypatch):
    monkeypatch.setattr(Path, "home", no_home)
    assert default_xla_cache_dir() is None
    keep_compiled_programs()
    assert settings() == (None, 1.0)


def test_a_chosen_directory_stays_and_takes_small_programs_too(settings, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    keep_compiled_programs()
    assert settings() == (str(tmp_path), 0.0)
