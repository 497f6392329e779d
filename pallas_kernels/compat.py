"""Private jax names, in one place; each says from which jax on a public name can take over."""

from typing import Any

import jax


def gpu_interpreter() -> Any:
    """What ``plgpu.kernel(interpret=...)`` takes to run a Mosaic GPU kernel on the CPU.

    Public as ``jax.experimental.pallas.mosaic_gpu.InterpretGPUParams`` from jax 0.11.2. It needs
    the package absl-py. Memory that a kernel has not written holds NaN.
    """
    from jax.experimental.pallas import mosaic_gpu

    if hasattr(mosaic_gpu, "InterpretGPUParams"):
        return mosaic_gpu.InterpretGPUParams()
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    return InterpretGPUParams()


def share_interpreted_programs() -> None:
    """Lets all warpgroups and calls of an interpreted GPU kernel share one compiled program, from
    now on and in the whole process. For tests.

    The interpreter of jax 0.10.2 compiles the kernel once for each warpgroup in each call, which is
    most of its time; newer ones, which have ``_run``, share it themselves.
    """
    from jax._src.pallas.mosaic.interpret import thread_map

    if hasattr(thread_map, "_run"):
        return

    def evaluate(jaxpr: Any, consts: Any, *arguments: Any) -> None:
        jax.core.eval_jaxpr(jaxpr, consts, *arguments)

    program = jax.jit(evaluate, static_argnums=0)

    def run(jaxpr: Any, consts: Any, *arguments: Any) -> None:
        program.trace(jaxpr, consts, *arguments).lower().compile()(consts, *arguments)

    thread_map._run_jaxpr = run


__all__ = ["gpu_interpreter", "share_interpreted_programs"]
