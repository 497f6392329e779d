"""What the tests of all kernels share: how interpreters compile, and what makes results equal."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

from pallas_kernels import compat
from pallas_kernels.tolerance import TOLERANCE
from tests.pallas_kernels.on_chip import is_on_chip


@pytest.fixture(scope="session", autouse=True)
def interpreter_compiles_once() -> None:
    """Each kernel, and not each warpgroup of it in each call."""
    if not is_on_chip():
        compat.share_interpreted_programs()


@pytest.fixture(autouse=True)
def interpreter_compiles_quickly(request: pytest.FixtureRequest) -> Iterator[None]:
    """An interpreter's programs are large and run once: most of the time goes into their making."""
    is_interpreted = request.node.get_closest_marker("interpreted") and not is_on_chip()
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", bool(is_interpreted) or before)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def has_raced(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> Callable[[], bool]:
    """``has_raced()``: whether a TPU kernel raced that was run with ``detect_races`` since it was
    last asked. The interpreter has no other public way to tell than to print it, or, from a newer
    jax on, to raise an error or to log it."""

    def ask() -> bool:
        said = capfd.readouterr().out + caplog.text
        caplog.clear()
        return "RACE DETECTED" in said

    return ask


@pytest.fixture(scope="session")
def assert_close() -> Callable[..., None]:
    """Equality up to the rounding of a dtype; ``near_zero`` names what else zeros may be off by."""

    def check(
        out: np.ndarray, expected: np.ndarray, dtype: str = "float32", near_zero: str | None = None
    ) -> None:
        atol = TOLERANCE[near_zero or dtype]
        np.testing.assert_allclose(out, expected, rtol=TOLERANCE[dtype], atol=atol)

    return check


@pytest.fixture(scope="session")
def assert_same_pages() -> Callable[[Any, Any], None]:
    """Equality of pools bit for bit, NaN included."""

    def check(pages: Any, expected: Any) -> None:
        for leaf, wanted in zip(jax.tree.leaves(pages), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(
                np.asarray(leaf).view(np.uint8), np.asarray(wanted).view(np.uint8)
            )

    return check
