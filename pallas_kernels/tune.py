"""Searches tile sizes for the kernels of an operation, and writes its table.

``python -m pallas_kernels.tune OPERATION [--spec NAME] [--chip NAME] [--seconds N]``

On a TPU or GPU every candidate is timed whose results are those of the heuristic's tiles, and the
fastest goes into the table. With ``--chip`` it compiles for a chip that is not here, and writes
down the first candidate which that chip's compiler takes, without register spills:
``microseconds`` is then null, for nothing was measured. An entry that was measured is never
replaced by one that was not.

The table is written after each question. A kernel that reads or writes where it must not leaves the
chip to no program of this process: then the command ends with 1.
"""

import argparse
import importlib
import math
import sys
from collections.abc import Sequence
from time import monotonic

import jax
import numpy as np
from jax.sharding import Mesh

from pallas_kernels import chips, tile_table
from pallas_kernels.candidate import ChipLost
from pallas_kernels.limits import is_accelerator
from pallas_kernels.search import Search
from pallas_kernels.tile_table import Entry

OPERATIONS = ("ragged_paged_attention", "latent_attention", "grouped_matmul")


def merged(old: Sequence[Entry], new: Sequence[Entry]) -> tuple[Entry, ...]:
    """Both, the new in place of the old, but nothing compiled in place of what was measured."""
    measured = {entry.identity for entry in old if entry.microseconds is not None}
    return (*old, *(x for x in new if x.microseconds or x.identity not in measured))


def main(argv: list[str] | None = None) -> None:
    """The command; see the module."""
    start = monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operation", choices=OPERATIONS)
    parser.add_argument("--spec", action="append", help="default: all of the operation")
    parser.add_argument(
        "--chip", choices=chips.NAMES, help="compile for it; default: measure on the one here"
    )
    parser.add_argument("--most", type=int, default=64, help="candidates tried (64)")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="no candidate is begun later (no end)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print, and write no table")
    arguments = parser.parse_args(argv)
    operation = importlib.import_module(f"pallas_kernels.{arguments.operation}.bench").OPERATION
    unknown = [name for name in arguments.spec or () if name not in operation.every]
    if unknown:
        parser.error(f"--spec {unknown[0]} is not one of {', '.join(operation.every)}")
    # What comes from the persistent cache was not compiled, and has no report.
    jax.config.update("jax_enable_compilation_cache", False)
    command = "python -m pallas_kernels.tune " + " ".join(sys.argv[1:] if argv is None else argv)
    is_here = arguments.chip is None
    if is_here and not is_accelerator():
        parser.error("there is no TPU or GPU to measure on: name a --chip to compile for")
    try:
        devices = jax.devices() if is_here else chips.devices_of(arguments.chip)
    except chips.NoCompiler as missing:
        parser.error(str(missing))
    mesh = Mesh(np.array(devices[:1]), ("chip",))
    search = Search(
        operation=operation,
        mesh=mesh,
        is_here=is_here,
        most=arguments.most,
        deadline=start + arguments.seconds,
    )
    try:
        for entry in search.entries(arguments.spec or list(operation.every), command):
            if not arguments.dry_run:  # After each, for the next one may end the process.
                tile_table.write(operation.name, merged(tile_table.read(operation.name), [entry]))
    except ChipLost as lost:
        raise SystemExit(f"{lost}; what was found before is written") from lost


if __name__ == "__main__":
    main()
