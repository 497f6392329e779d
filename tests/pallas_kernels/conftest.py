"""Which tests of kernels run when."""

from collections.abc import Iterator

import jax
import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Interpreters take minutes: their tests run when they are asked for by their mark."""
    if "interpreted" in config.option.markexpr:
        return
    for item in items:
        if item.get_closest_marker("interpreted"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: ask with -m interpreted"))


@pytest.fixture(autouse=True)
def interpreter_compiles_quickly(request: pytest.FixtureRequest) -> Iterator[None]:
    """An interpreter's programs are large and run once: most of the time goes into their making."""
    is_interpreted = request.node.get_closest_marker("interpreted") is not None
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", is_interpreted or before)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
