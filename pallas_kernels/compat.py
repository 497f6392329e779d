"""Private jax names, in one place; each says from which jax on a public name can take over."""

from typing import Any


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


__all__ = ["gpu_interpreter"]
