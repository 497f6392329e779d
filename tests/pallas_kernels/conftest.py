"""Which tests of kernels run when."""

from collections.abc import Iterator

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
