"""Searches tile sizes for the kernels of an operation, and writes its table.

``python -m pallas_kernels.tune OPERATION [--spec NAME] [--chip NAME]``

On a TPU or GPU every candidate is timed, and the fastest goes into the table. With ``--chip`` it
compiles for a chip that is not here, and writes down the first candidate which that chip's compiler
takes, without register spills: ``microseconds`` is then null, for nothing was measured. An entry
that was measured is never replaced by one that was not.
"""

import argparse
import datetime
import importlib
import itertools
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.stages import Lowered

from pallas_kernels import chips, tile_table
from pallas_kernels.benchmark import Case, Operation, Step, lower_for, one_layer
from pallas_kernels.dispatch import NoImplementation
from pallas_kernels.limits import is_accelerator, seconds_of
from pallas_kernels.tile_table import Entry, Question

OPERATIONS = ("ragged_paged_attention", "latent_attention", "grouped_matmul")
REFUSALS = (ValueError, NotImplementedError, jax.errors.JaxRuntimeError)
"""How lowering, the compilers and the chip say that tiles are too large."""
SPILLS = re.compile(r"(\d+) bytes spill stores")


@dataclass(frozen=True, kw_only=True)
class Search:
    """Candidates for an operation on the first device of ``mesh``.

    ``is_here``: whether it can be measured. ``most``: candidates tried for each question.
    """

    operation: Operation
    mesh: Mesh
    is_here: bool
    most: int = 64

    @property
    def implementation(self) -> str:
        return "tpu" if self.mesh.devices.flat[0].platform == "tpu" else "gpu"

    def entries(self, spec_names: Sequence[str], command: str) -> Iterator[Entry]:
        """One for each question that the kernels ask while these specs are traced."""
        known = set()
        for name in spec_names:
            spec = self.operation.every[name]
            spec = spec if self.is_here else one_layer(spec)
            try:
                case = self.operation.case(spec, "bfloat16", self.implementation)
                with tile_table.trial(self.operation.name, {}) as asked:
                    lower_for(case, self.mesh)
            except NoImplementation as refusal:
                print(f"{name}: {refusal}", file=sys.stderr)
                continue
            for identity, question in asked.items():
                if identity in known:
                    continue
                known.add(identity)
                candidates = self._candidates(question)
                tried = dict(self._tried(case, identity, candidates))
                if not tried:
                    print(f"{name}: no candidate compiles for {identity}", file=sys.stderr)
                    continue
                tiles, microseconds = min(tried.items(), key=lambda pair: pair[1] or 0.0)
                print(f"{name}: {tiles}, microseconds: {microseconds}", file=sys.stderr, flush=True)
                yield Entry(
                    implementation=question.implementation,
                    chip=self.mesh.devices.flat[0].device_kind,
                    key=tile_table.key_of(question.problem),
                    tiles=asdict(tiles),
                    microseconds=microseconds,
                    heuristic_microseconds=tried.get(candidates[0]),
                    command=command,
                    jax=jax.__version__,
                    date=datetime.date.today().isoformat(),
                )

    def _candidates(self, question: Question) -> list[Any]:
        """For all problems of this kind, the heuristic's first."""
        tuning = importlib.import_module(f"pallas_kernels.{self.operation.name}.tuning")
        problem = tile_table.rounded(question.problem)
        with jax.set_mesh(self.mesh):
            candidates = tuning.candidates(question.implementation, problem)
            return list(itertools.islice(candidates, self.most))

    def _tried(
        self, case: Case, identity: tuple, candidates: Sequence[Any]
    ) -> Iterator[tuple[Any, float | None]]:
        """Candidates that compile, and their time; only the first where it cannot be measured."""
        for tiles in candidates:
            try:
                with tile_table.trial(self.operation.name, {identity: tiles}) as asked:
                    lowered = lower_for(case, self.mesh)
                    assert identity in asked, f"{identity} was not asked for again"
                    if _spills(lowered):
                        continue
                    seconds = min(seconds_of(Step(case), repeats=5)) if self.is_here else None
            except REFUSALS as refusal:
                print(f"{tiles}: {str(refusal)[:200]}", file=sys.stderr)
                continue
            # A step has a call for each layer.
            yield tiles, None if seconds is None else 1e6 * seconds / case.facts.get("layers", 1)
            if seconds is None:
                return


def merged(old: Sequence[Entry], new: Sequence[Entry]) -> tuple[Entry, ...]:
    """Both, the new in place of the old, but nothing compiled in place of what was measured."""
    measured = {entry.identity for entry in old if entry.microseconds is not None}
    return (*old, *(x for x in new if x.microseconds or x.identity not in measured))


def _spills(lowered: Lowered) -> bool:
    """Compiles it; whether the assembler had to spill registers."""
    with _said_by_the_assembler() as said:
        lowered.compile()
    return any(int(spilled) for spilled in SPILLS.findall("".join(said)))


@contextmanager
def _said_by_the_assembler() -> Iterator[list[str]]:
    """What ptxas writes to the process's own outputs while this block runs."""
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


def main(argv: list[str] | None = None) -> None:
    """The command; see the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("operation", choices=OPERATIONS)
    parser.add_argument("--spec", action="append", help="default: all of the operation")
    parser.add_argument(
        "--chip", choices=chips.NAMES, help="compile for it; default: measure on the one here"
    )
    parser.add_argument("--most", type=int, default=64, help="candidates tried (64)")
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
    search = Search(operation=operation, mesh=mesh, is_here=is_here, most=arguments.most)
    for entry in search.entries(arguments.spec or list(operation.every), command):
        if not arguments.dry_run:  # After each, for the next one may end the process.
            tile_table.write(operation.name, merged(tile_table.read(operation.name), [entry]))


if __name__ == "__main__":
    main()
