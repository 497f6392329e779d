"""What the tests of all kernels share: how long interpreters compile, and what they tell."""

from collections.abc import Callable, Iterator

import jax
import pytest


@pytest.fixture(autouse=True)
def interpreter_compiles_quickly(request: pytest.FixtureRequest) -> Iterator[None]:
    """An interpreter's programs are large and run once: most of the time goes into their making."""
    is_interpreted = request.node.get_closest_marker("interpreted") is not None
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", is_interpreted or before)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def has_raced(capfd: pytest.CaptureFixture[str]) -> Callable[[], bool]:
    """``has_raced()``: whether a TPU kernel raced that was run with ``detect_races`` since it was
    last asked. The interpreter has no other public way to tell than to print it."""

    def ask() -> bool:
        return "RACE DETECTED" in capfd.readouterr().out

    return ask
