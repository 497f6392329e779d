"""Chips that are not here, to compile for."""

import os
import re
from collections.abc import Callable, Iterator

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh

REPORT = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads\D+Used (\d+) registers")
"""What ptxas says of a kernel: bytes spilled, bytes loaded again, registers."""


@pytest.fixture
def no_program_cache() -> Iterator[None]:
    """Programs are compiled, not read: those for other chips cannot be loaded without a device, and
    would come without the assembler's report."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # which remembers whether it is in use
    yield
    jax.config.update("jax_enable_compilation_cache", before)
    compilation_cache.reset_cache()


@pytest.fixture
def tpu_mesh(no_program_cache: None) -> Callable[..., Mesh]:
    """``tpu_mesh(chip, devices=1, axes=("chip",))``: TPUs along the last of the axes."""
    return _mesh_of


@pytest.fixture
def hopper_mesh(no_program_cache: None) -> Mesh:
    """A mesh of one Hopper GPU."""
    return _mesh_of("h100")


def _mesh_of(chip: str, devices: int = 1, axes: tuple[str, ...] = ("chip",)) -> Mesh:
    from pallas_kernels.chips import NoCompiler, devices_of  # after the hook that checks shapes

    try:
        found = devices_of(chip)[:devices]
    except NoCompiler as missing:
        if "CI" in os.environ:  # which installs them: there nothing may go unproven
            raise
        pytest.skip(str(missing))
    return Mesh(np.array(found).reshape((1,) * (len(axes) - 1) + (devices,)), axes)
