"""The rules every test runs under: strict promotion, checked shapes, four CPU devices.

Warnings are errors (pyproject.toml). Set JAX_PLATFORMS to run the same tests on another backend.
"""

import os
import signal
import typing
from collections.abc import Generator

import jax
import pytest
from beartype import beartype
from hypothesis import settings
from jaxtyping import AbstractArray, install_import_hook

from tests.chips import hopper_mesh, no_program_cache, tpu_mesh  # noqa: F401 (fixtures, for every room)

# In the environment too, for the processes that tests start.
jax.config.update("jax_platforms", os.environ.setdefault("JAX_PLATFORMS", "cpu"))
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# A shell that starts the tests in the background has them ignore interrupts; some raise their own.
signal.signal(signal.SIGINT, signal.default_int_handler)

#: Rooms whose tests build whole models and engines, for which XLA works longer than they do. What
#: it does to loops last of all is left out there: tokens of two schedules are compared, or numbers
#: with those of others. What is about bits and speed is in the other rooms.
WHOLE_MODELS = {"bench", "cli", "e2e", "engine", "llm", "models"}

settings.register_profile("house", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("house")


def check_shapes(function: typing.Callable) -> typing.Callable:
    """Checks the shapes and dtypes that a function's annotations state, and no other annotation.

    What is wrong besides arrays is for mypy, and for the errors of the function itself: a test of a
    hostile value must reach them. Annotations that are strings (``from __future__ import
    annotations``) are not checked.
    """
    hints = function.__annotations__
    if not any(map(_states_a_shape, hints.values())):
        return function
    function.__annotations__ = {
        name: hint if _states_a_shape(hint) else typing.Any for name, hint in hints.items()
    }
    return beartype(function)


def _states_a_shape(hint: object) -> bool:
    is_array = isinstance(hint, type) and issubclass(hint, AbstractArray)
    return is_array or any(map(_states_a_shape, typing.get_args(hint)))


# Before anything imports the packages: it rewrites them while they load.
install_import_hook(["jaxinfer", "pallas_kernels", "sharding"], f"{__name__}.check_shapes")


def pytest_configure(config: pytest.Config) -> None:
    """Compiled programs outlive the session, so that a second run of the tests compiles nothing."""
    if "interpreted" in config.option.markexpr:
        # XLA on the CPU takes as many threads. Each warpgroup of an interpreted GPU kernel holds
        # one while it waits: with fewer they would wait for each other for ever.
        os.environ.setdefault("NPROC", "8")
    if hasattr(config, "cache"):
        jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("jax_programs")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Interpreters take minutes: their tests run when they are asked for by their mark."""
    if "interpreted" in config.option.markexpr:
        return
    for item in items:
        if item.get_closest_marker("interpreted"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: ask with -m interpreted"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Programs of whole models are compiled as fast as they can be, not made fast."""
    room = item.path.relative_to(item.config.rootpath / "tests").parts[0]
    jax.config.update("jax_disable_most_optimizations", room in WHOLE_MODELS)
    return (yield)


@pytest.fixture
def four_devices() -> list[jax.Device]:
    """Four devices of the backend under test, for meshes."""
    devices = jax.devices()
    if len(devices) < 4:
        pytest.skip(f"needs four devices, and {jax.default_backend()} has {len(devices)}")
    return devices[:4]
