"""The process of the ``jaxinfer`` command, also ``python -m jaxinfer.cli``."""

import os
import sys
from typing import NoReturn

from jaxinfer.cli import main


def run() -> NoReturn:
    """Runs the command line's command and leaves the process."""
    status = main()
    if status != 0:
        # Python would wait for programs that are still being compiled, and nobody else does.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    run()
