"""Fixtures of the end-to-end tests; see ``tiny.py``."""

from collections.abc import Callable, Iterator

import jax
import pytest

from tests.e2e.tiny import House, house_of


@pytest.fixture(scope="session", params=["full", "hybrid"])
def house(request: pytest.FixtureRequest) -> House:
    """All layers with full attention; or full and sliding-window layers in turn."""
    return house_of((None, None) if request.param == "full" else (12, None, 12))


@pytest.fixture
def compilations() -> Iterator[Callable[[], int]]:
    """How many programs were compiled since the test began."""
    seen: list[str] = []

    def listen(event: str, duration: float, **kwargs: object) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield lambda: len(seen)
    jax.monitoring.unregister_event_duration_listener(listen)
