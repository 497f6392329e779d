"""Which implementation runs a problem, and what the others say."""

from pallas_kernels import dispatch
from pallas_kernels.grouped_matmul import refusals
from pallas_kernels.grouped_matmul.problem import Problem


def choose(problem: Problem, implementation: str | None) -> str:
    """The name of the implementation; errors as those of ``dispatch.choose``."""
    # A name is taken at its word: what is compiled ahead of time may be for other machines.
    chip = None if implementation else dispatch.chip()

    def tpu() -> str | None:
        if chip and (elsewhere := chip.refuse("tpu")):
            return elsewhere
        return refusals.refuse_tpu(problem)

    def gpu() -> str | None:
        if chip and (elsewhere := chip.refuse("gpu")):
            return elsewhere
        return refusals.refuse_gpu(problem)

    def can() -> None:
        return None

    answers = {"tpu": tpu, "gpu": gpu, "xla": can, "reference": can}
    return dispatch.choose("grouped_matmul", answers, implementation, chip)
