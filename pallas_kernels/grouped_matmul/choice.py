"""Which implementation runs a problem, and what the others say."""

from pallas_kernels import dispatch
from pallas_kernels.grouped_matmul.problem import Problem


def choose(problem: Problem, implementation: str | None) -> str:
    """The name of the implementation; errors as those of ``dispatch.choose``."""

    def can() -> None:
        return None

    refusals = {"xla": can, "reference": can}
    return dispatch.choose("grouped_matmul", refusals, implementation)
