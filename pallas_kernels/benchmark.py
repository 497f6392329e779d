"""Time of an operation on the chip that is here, and its fraction of what that chip can do.

With ``--check`` the result of each spec (with one layer) is held against the reference, too: an
error above 1 is more than rounding explains, and ends the command with 1.

Each operation brings its named shapes as programs (``Case``); ``python -m
pallas_kernels.OPERATION.bench`` runs them. The limits are measured in the same run (``limits.py``).
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Lowered

from pallas_kernels.dispatch import NAMES, NoImplementation
from pallas_kernels.limits import Limits, is_accelerator, measure_limits, seconds_of

FLOAT_DTYPES = ("float32", "bfloat16", "float16")

WRONG_ABOVE = {"error": 1.0, "row_error": 1.0, "wrong_in_pages": 0}
"""The figures of a check (see each operation's ``check.py``), and the most they may be."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One spec as a program that can be run over and over.

    Attributes:
        run: ``run(carried, *arguments) -> (result, carried)``. What is carried is donated, and
            makes every call wait for the one before it.
        make: ``make() -> (carried, arguments)``. Under ``jax.eval_shape`` it makes nothing.
        num_bytes: the least that a call must read and write.
        flops: the least that it must compute.
        facts: what else to print of it.
        errors: ``errors(before, arguments, result, after)`` of a call of ``run`` which made
            ``after`` of what was carried before. By name, those of ``WRONG_ABOVE`` that it
            knows, and how much it checked.
    """

    run: Callable[..., tuple[jax.Array, Any]]
    make: Callable[[], tuple[Any, tuple]]
    num_bytes: int
    flops: int
    facts: Mapping[str, Any]
    errors: Callable[[Any, tuple, jax.Array, Any], dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Operation:
    """What an operation brings to be measured.

    Attributes:
        name: that of its folder.
        specs: frozen dataclasses, by name.
        large_specs: those that only an accelerator runs.
        case: ``case(spec, dtype, implementation)``, with the dtype of its queries or rows.
        changes: fields of a spec that may be changed, and the values allowed, or a type.
    """

    name: str
    specs: Mapping[str, Any]
    large_specs: Mapping[str, Any]
    case: Callable[[Any, str, str | None], Case]
    changes: Mapping[str, Any]

    @property
    def every(self) -> dict[str, Any]:
        return {**self.specs, **self.large_specs}


def one_layer(spec: Any) -> Any:
    """The spec with one layer, which has all the kernels of many and compiles sooner."""
    return dataclasses.replace(spec, layers=1) if hasattr(spec, "layers") else spec


def each_drawn(draw: Callable[[jax.Array], Any], count: int) -> Callable[[jax.Array], Any]:
    """Of a key, a pytree of ``count`` things; ``draw(key)`` makes one, along a first axis of one.

    No two are equal, so that a wrong one shows. Zeros would draw less power, and run faster, than
    what a model writes. One after the other, because their float32 would fill the memory.
    """

    @jax.jit
    def all_of_them(key: jax.Array) -> Any:
        things = jax.lax.map(draw, jax.random.split(key, count))
        return jax.tree.map(lambda leaf: leaf.reshape(count, *leaf.shape[2:]), things)

    return all_of_them


def random_like(key: jax.Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.Array:
    """Normal numbers of a dtype that pages hold; as multiples of 1/32 where it is of integers."""
    x = jax.random.normal(key, shape, jnp.float32)
    if jnp.issubdtype(dtype, jnp.integer):
        x = jnp.clip(jnp.round(32 * x), -127, 127)
    return x.astype(dtype)


class Step:
    """A case compiled for the device that is here, and its arrays."""

    def __init__(self, case: Case):
        self.carried, self.arguments = case.make()
        start = time.perf_counter()
        traced = _jitted(case).lower(self.carried, *self.arguments)
        self.trace_seconds = time.perf_counter() - start
        start = time.perf_counter()
        self.compiled = traced.compile()
        self.compile_seconds = time.perf_counter() - start

    def __call__(self) -> jax.Array:
        result, self.carried = self.compiled(self.carried, *self.arguments)
        return result


def lower_for(case: Case, mesh: Mesh) -> Lowered:
    """The program of a case for the devices of ``mesh``, which need not be here."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    with jax.set_mesh(mesh):
        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
            jax.eval_shape(case.make),
        )
        carried, arguments = shapes
        return _jitted(case).lower(carried, *arguments)


def _jitted(case: Case) -> Any:
    """A function of its own each time: JAX would not trace the same one again, and a kernel asks
    for its tiles while it is traced."""
    run = case.run
    return jax.jit(lambda carried, *arguments: run(carried, *arguments), donate_argnums=0)


def measure(case: Case, limits: Limits, repeats: int) -> dict[str, Any]:
    """Times of one case, and ``achieved``: the least time at these limits over the measured one."""
    step = Step(case)
    times = seconds_of(step, repeats)
    best = min(times)
    return {
        **case.facts,
        "min_ms": best * 1e3,
        "median_ms": statistics.median(times) * 1e3,
        "gigabytes": case.num_bytes / 1e9,
        "gigabytes_per_second": case.num_bytes / best / 1e9,
        "gigaflop": case.flops / 1e9,
        "gigaflops": case.flops / best / 1e9,
        "achieved": limits.least_seconds(case.num_bytes, case.flops) / best,
        "trace_s": step.trace_seconds,
        "compile_s": step.compile_seconds,
    }


def check(operation: Operation, spec: Any, dtype: str, implementation: str | None) -> dict:
    """The errors of one layer of a spec, on the numbers that are measured."""
    case = operation.case(one_layer(spec), dtype, implementation)
    step = Step(case)
    result = step()
    before, arguments = case.make()  # The step wrote to its own.
    return case.errors(before, arguments, result, step.carried)


def is_wrong(result: Mapping[str, Any]) -> bool:
    """Whether a check found more than ``WRONG_ABOVE``, or what is no number."""
    return not all(result.get(name, 0) <= most for name, most in WRONG_ABOVE.items())


def main(operation: Operation, argv: list[str] | None = None) -> None:
    """The command of an operation's ``bench``; the last line of standard output is JSON."""
    parser = argparse.ArgumentParser(
        prog=f"python -m pallas_kernels.{operation.name}.bench", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--spec", action="append", choices=operation.every, help="default: all that suit the chip"
    )
    parser.add_argument("--implementation", choices=NAMES, help="default: the first that can")
    parser.add_argument("--dtype", choices=FLOAT_DTYPES, default="bfloat16")
    for name, allowed in operation.changes.items():
        kind = {"type": allowed} if isinstance(allowed, type) else {"choices": allowed}
        parser.add_argument(f"--{name.replace('_', '-')}", help="default: the spec's", **kind)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--check", action="store_true", help="hold results against the reference")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    arguments = parser.parse_args(argv)
    changes = {name: getattr(arguments, name) for name in operation.changes}
    changes = {name: value for name, value in changes.items() if value is not None}

    # On the CPU all products are of float32, whatever the dtype is.
    limits = measure_limits(arguments.dtype if is_accelerator() else "float32")
    results = []
    for name in arguments.spec or (operation.every if is_accelerator() else operation.specs):
        spec = dataclasses.replace(operation.every[name], **changes)
        result = {"spec": name}
        try:
            case = operation.case(spec, arguments.dtype, arguments.implementation)
            result |= measure(case, limits, arguments.repeats)
            if arguments.check:
                result |= check(operation, spec, arguments.dtype, arguments.implementation)
        except NoImplementation as refusal:
            result |= {"refused": str(refusal)}
        results.append(result)
        if not arguments.json:
            print(_line(result), flush=True)
    print(
        json.dumps(
            {
                "operation": operation.name,
                "backend": jax.default_backend(),
                "chip": jax.devices()[0].device_kind,
                "implementation": arguments.implementation,
                "dtype": arguments.dtype,
                "limits": dataclasses.asdict(limits),
                "results": results,
            }
        )
    )
    if wrong := [result["spec"] for result in results if is_wrong(result)]:
        raise SystemExit(f"not what the reference says: {', '.join(wrong)}")


def _line(result: dict[str, Any]) -> str:
    figures = (
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in result.items()
        if key != "spec"
    )
    return f"{result['spec']}: {', '.join(figures)}"
