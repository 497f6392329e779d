"""Where kernels run: in interpreters on the CPU, and as themselves on the chip they are for."""

from typing import Any

import pytest

from pallas_kernels import dispatch


def interpret_of(implementation: str, how: Any = True) -> Any:
    """What a test passes as ``interpret``: ``how`` on the CPU, and nothing on the kernel's chip.

    Skips the test on a chip of another kind, and where the interpreter lacks a package.
    """
    if implementation not in dispatch.KERNELS_NEED:
        return False
    if is_on_chip():
        if reason := dispatch.chip().refuse(implementation):
            pytest.skip(reason)
        return False
    if implementation == "gpu":
        pytest.importorskip("absl", reason="the interpreter of Mosaic GPU needs absl-py")
    return how


def is_on_chip() -> bool:
    """Whether the backend under test is an accelerator."""
    return dispatch.chip().platform != "cpu"


def needs_an_interpreter(what: str) -> None:
    """Skips a test that watches ``what``, which no chip tells."""
    if is_on_chip():
        pytest.skip(f"only an interpreter tells {what}")
