"""What the kernels cannot do; asked before anything of Pallas is imported."""

from pallas_kernels.grouped_matmul.problem import Problem

TPU_UNIT = 128
"""Columns of a register."""

GPU_UNIT = 64
"""Numbers of a row that a copy takes, and the least columns of a tile."""


def refuse_tpu(problem: Problem) -> str | None:
    """Why the TPU kernel cannot run this problem, or None."""
    return _refuse_sizes(problem, TPU_UNIT)


def _refuse_sizes(problem: Problem, unit: int) -> str | None:
    for name, size in (("D", problem.depth), ("F", problem.columns)):
        if size % unit:
            return f"{name} = {size} is not a multiple of {unit}"
    return None


def refuse_gpu(problem: Problem) -> str | None:
    """Why the Hopper kernel cannot run this problem, or None."""
    if problem.is_scaled:
        return f"weights of {problem.w_dtype.name} with a scale are not implemented"
    if problem.x_dtype.name != "bfloat16":
        return f"dtype of x_TD = {problem.x_dtype.name} is not bfloat16"
    return _refuse_sizes(problem, GPU_UNIT)
