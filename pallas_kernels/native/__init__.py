"""Machine code for the CPU that is here: written with llvmlite when first needed, called by XLA.

Whoever wants a kernel asks ``missing`` first, and does without one where it names something.
"""

import functools
import importlib.util
import platform
import struct
import sys


@functools.cache
def missing() -> str | None:
    """What this machine lacks for such code, or None."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"it is written for x86-64, not {platform.machine()}"
    if importlib.util.find_spec("llvmlite") is None:
        return "the package llvmlite is not installed (pip install llvmlite)"
    if sys.platform not in ("linux", "darwin") or struct.calcsize("P") != 8:
        return f"it is written for 64-bit Linux and macOS, not {sys.platform}"
    from llvmlite import binding

    if not hasattr(binding, "create_pass_builder"):
        return "llvmlite is too old (pip install --upgrade llvmlite)"
    try:
        binding.check_jit_execution()
    except OSError as error:
        return f"this process may not make memory executable: {error}"
    from pallas_kernels.native import ffi, machine

    version = ffi.installed_version()
    if version is None or version[0] != ffi.MAJOR_VERSION:
        return f"jaxlib's foreign function interface is of version {version}"
    return None if machine.vector_unit() else "this CPU has no AVX2 with FMA"


__all__ = ["missing"]
