"""What ptxas, the assembler for GPUs, says of the kernels that it is given."""

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

SPILLS = re.compile(r"(\d+) bytes spill stores")


@contextmanager
def said_by_the_assembler() -> Iterator[list[str]]:
    """What it writes to the process's own outputs while this block runs; there once it has ended.

    A kernel that this process has compiled before may not be compiled again, and has no report.
    """
    said: list[str] = []
    before = os.environ.get("MOSAIC_GPU_DUMP_PTXAS")
    os.environ["MOSAIC_GPU_DUMP_PTXAS"] = "1"
    with tempfile.TemporaryFile() as file:
        kept = [os.dup(number) for number in (1, 2)]
        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            yield said
        finally:
            for number, copy in zip((1, 2), kept, strict=True):
                os.dup2(copy, number)
                os.close(copy)
            if before is None:
                del os.environ["MOSAIC_GPU_DUMP_PTXAS"]
            file.seek(0)
            said.append(file.read().decode(errors="replace"))


def has_spilled(said: Sequence[str]) -> bool:
    """Whether it had to put registers of any kernel into memory."""
    return any(int(spilled) for spilled in SPILLS.findall("".join(said)))
