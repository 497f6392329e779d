"""The CPU that is here: what its vectors can do, and how code gets into memory."""

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass

import jax
import llvmlite.binding as llvm
from llvmlite import ir

_lock = threading.Lock()
_registered: set[str] = set()


@dataclass(frozen=True)
class VectorUnit:
    """``lanes`` float32 numbers in a register, of ``num_registers``.

    ``has_bfloat16``: multiplies pairs of bfloat16 and adds both products to a float32.
    """

    lanes: int
    num_registers: int
    has_bfloat16: bool


@functools.cache
def vector_unit() -> VectorUnit | None:
    """None where it is none that code was written for."""
    features = {name for name, has in llvm.get_host_cpu_features().items() if has}
    if {"avx512f", "avx512bw", "avx512vl"} <= features:
        return VectorUnit(16, 32, has_bfloat16="avx512bf16" in features)
    if {"avx2", "fma"} <= features:
        return VectorUnit(8, 16, has_bfloat16=False)
    return None


def register(name: str, build: Callable[[ir.Module, str], None]) -> None:
    """Makes ``name`` a target of ``jax.ffi.ffi_call``, if it is not one yet.

    ``build`` writes a module with a function of this name, see ``handler.write_handler``. Programs
    that were kept on disk find the function by its name too, so a name must not change its meaning.
    """
    with _lock:
        if name in _registered:
            return
        module = ir.Module(name)
        build(module, name)
        address = _address(module, name)
        jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(address), platform="cpu")
        _registered.add(name)


def _address(module: ir.Module, name: str) -> int:
    """Where function ``name`` of a module lies in memory, for good."""
    # The engine takes it over.
    target_machine = _target_machine()
    module.triple = target_machine.triple
    module.data_layout = str(target_machine.target_data)
    parsed = llvm.parse_assembly(str(module))
    parsed.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=2)
    # Loops are written as wide as they are to be.
    options.loop_unrolling = options.loop_vectorization = options.slp_vectorization = False
    passes = llvm.create_pass_builder(target_machine, options)
    passes.getModulePassManager().run(parsed, passes)
    engine = llvm.create_mcjit_compiler(parsed, target_machine)
    engine.finalize_object()
    address = engine.get_function_address(name)
    # XLA's threads may run the code up to the end of the process.
    engine.detach()
    return address


def _target_machine() -> llvm.TargetMachine:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features()
    # Some CPUs are said to prefer vectors half as wide as they have.
    features["prefer-256-bit"] = False
    target = llvm.Target.from_triple(llvm.get_process_triple())
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=features.flatten(), opt=3, jit=True
    )
