"""What the kernels cannot do; asked before anything of Pallas is imported."""

from pallas_kernels.grouped_matmul.problem import Problem

LANES = 128
"""Columns of a register of a TPU."""


def refuse_tpu(problem: Problem) -> str | None:
    """Why the TPU kernel cannot run this problem, or None."""
    for name, size in (("D", problem.depth), ("F", problem.columns)):
        if size % LANES:
            return f"{name} = {size} is not a multiple of {LANES}"
    return None
