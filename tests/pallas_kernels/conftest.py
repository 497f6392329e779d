"""Which tests of kernels run when."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Interpreters take minutes: their tests run when they are asked for by their mark."""
    if "interpreted" in config.option.markexpr:
        return
    for item in items:
        if item.get_closest_marker("interpreted"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: ask with -m interpreted"))
