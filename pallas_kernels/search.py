"""The search for the tiles of an operation: what is asked, tried and answered, one by one."""

import datetime
import importlib
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from time import monotonic
from typing import Any

import jax
from jax.sharding import Mesh

from pallas_kernels import tile_table
from pallas_kernels.benchmark import Case, Operation, lower_for, one_layer
from pallas_kernels.candidate import ChipLost, Outcome, compiled, is_alive, measured
from pallas_kernels.tile_table import Entry, Question

MOST_LAYERS = 4
"""What is measured of a spec. One alone would pay for the lists of work that all layers share."""


def few_layers(spec: Any) -> Any:
    """The spec with ``MOST_LAYERS`` where it has more, to compile and run sooner."""
    if not hasattr(spec, "layers"):
        return spec
    return replace(spec, layers=min(spec.layers, MOST_LAYERS))


@dataclass(frozen=True, kw_only=True)
class Search:
    """Candidates for an operation on the first device of ``mesh``.

    ``is_here``: whether it can be measured. ``most``: candidates tried for each question.
    ``deadline``: by ``time.monotonic``; no candidate is begun after it.
    """

    operation: Operation
    mesh: Mesh
    is_here: bool
    most: int = 64
    deadline: float = math.inf

    @property
    def implementation(self) -> str:
        return "tpu" if self.mesh.devices.flat[0].platform == "tpu" else "gpu"

    def entries(self, spec_names: Sequence[str], command: str) -> Iterator[Entry]:
        """One for each question that the kernels ask while these specs are traced.

        Raises ``ChipLost`` after the entry of what was found until then.
        """
        known = set()
        for name in spec_names:
            if self._is_over():
                _say(f"{name}: not asked, the time is over")
                continue
            spec = self.operation.every[name]
            spec = few_layers(spec) if self.is_here else one_layer(spec)
            try:
                case = self.operation.case(spec, "bfloat16", self.implementation)
                with tile_table.trial(self.operation.name, {}) as asked:
                    lower_for(case, self.mesh)
            except Exception as refusal:  # One spec of many, and maybe one that no kernel takes.
                _say(f"{name}: {_brief(refusal)}")
                continue
            for identity, question in asked.items():
                if identity in known:
                    continue
                known.add(identity)
                if self._is_over():
                    _say(f"{name}: not asked, the time is over: {identity}")
                    continue
                _say(f"{name}: {identity}")
                yield from self._answers(case, identity, question, command)

    def _answers(
        self, case: Case, identity: tuple, question: Question, command: str
    ) -> Iterator[Entry]:
        """One, or none where no candidate can be taken."""
        lost, tried = None, {}
        candidates = self._candidates(question)
        try:
            for tiles, outcome in self._tried(case, identity, candidates):
                tried[tiles] = outcome
        except ChipLost as error:
            lost = error
        fit = {tiles: x.microseconds for tiles, x in tried.items() if x.refusal is None}
        if fit:
            tiles, microseconds = min(fit.items(), key=lambda pair: pair[1] or 0.0)
            _say(f"taken: {tiles}, microseconds: {microseconds}")
            yield Entry(
                implementation=question.implementation,
                chip=self.mesh.devices.flat[0].device_kind,
                key=tile_table.key_of(question.problem),
                tiles=asdict(tiles),
                microseconds=microseconds,
                heuristic_microseconds=tried[candidates[0]].microseconds if self.is_here else None,
                command=command,
                jax=jax.__version__,
                date=datetime.date.today().isoformat(),
            )
        else:
            _say("no candidate can be taken")
        if lost is not None:
            raise lost

    def _candidates(self, question: Question) -> list[Any]:
        """For all problems of this kind, the heuristic's first."""
        tuning = importlib.import_module(f"pallas_kernels.{self.operation.name}.tuning")
        problem = tile_table.rounded(question.problem)
        with jax.set_mesh(self.mesh):
            candidates = tuning.candidates(question.implementation, problem)
            return list(itertools.islice(candidates, self.most))

    def _tried(
        self, case: Case, identity: tuple, candidates: Sequence[Any]
    ) -> Iterator[tuple[Any, Outcome]]:
        """Those that compile and run, the heuristic's first, or nothing if it does not; only up to
        the first that may be taken where nothing can be measured."""
        expected = None
        for number, tiles in enumerate(candidates):
            if self._is_over():
                _say(f"the time is over after {number} of {len(candidates)} candidates")
                return
            # Before it is tried: it may hang, or end the process.
            _say(f"{number + 1} of {len(candidates)}: {tiles}")
            try:
                with tile_table.trial(self.operation.name, {identity: tiles}) as asked:
                    outcome = (
                        measured(case, expected) if self.is_here else compiled(case, self.mesh)
                    )
            except Exception as failure:  # Whatever it is, the next ones may do.
                outcome = Outcome(refusal=_brief(failure))
            else:
                assert identity in asked, f"{identity} was not asked for again"
            _say(f"    {outcome.refusal or outcome.microseconds or 'compiles'}")
            if not self.is_here:
                if outcome.refusal is None:
                    yield tiles, outcome
                    return
                continue
            if outcome.microseconds is not None:
                expected = outcome.results if expected is None else expected
                yield tiles, replace(outcome, results=())
            elif not is_alive():
                raise ChipLost(f"since {tiles} ran, the chip takes no program of this process")
            elif expected is None:
                _say("the heuristic's own tiles fail: there is nothing to hold others against")
                return

    def _is_over(self) -> bool:
        return monotonic() >= self.deadline


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
