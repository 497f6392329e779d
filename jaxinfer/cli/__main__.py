"""The process of the ``jaxinfer`` command, also ``python -m jaxinfer.cli``."""

import os
import sys
from typing import NoReturn

from jaxinfer.cli import main

_GPU_SHARES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
"""The variable by which XLA's client is told its share of a GPU's memory, and its former name."""


def run() -> NoReturn:
    """Runs the command line's command and leaves the process."""
    # A quarter of the card lies idle otherwise. What is left is for the driver and XLA's graphs.
    if not any(name in os.environ for name in _GPU_SHARES):
        os.environ[_GPU_SHARES[0]] = "0.95"
    status = main()
    if status != 0:
        # Python would wait for programs that are still being compiled, and nobody else does.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    run()
