"""Time of a grouped matmul, and its fraction of what this machine can do.

``python -m pallas_kernels.grouped_matmul.bench [--spec NAME] [--implementation NAME] [--json]``

The limits are measured in the same run: bytes a second by a copy too large for any cache, FLOPs by
a float32 matrix product. A call cannot take less than the rows, the matrices of groups that have
rows, and the result at the one, and the products of the rows that are no padding at the other;
``achieved`` is the larger of these times over the measured one. The last line of standard output is
JSON.
"""

import argparse
import dataclasses
import json
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.dispatch import NAMES
from pallas_kernels.grouped_matmul import grouped_matmul
from pallas_kernels.grouped_matmul.problem import DTYPES, SCALED_DTYPES
from pallas_kernels.grouped_matmul.specs import SPECS, Spec
from pallas_kernels.ragged_paged_attention.bench import Limits, measure_limits, seconds_of


class Step:
    """One compiled call of a spec. All matrices hold the same numbers, in memory of their own."""

    def __init__(self, spec: Spec, dtype: str, w_dtype: str | None, implementation: str | None):
        rng = np.random.default_rng(0)
        x_TD = jnp.asarray(rng.normal(size=(spec.rows, spec.depth)), dtype)
        w_DF = jnp.asarray(rng.uniform(-8, 8, size=(spec.depth, spec.columns)), w_dtype or dtype)
        w_EDF = jnp.broadcast_to(w_DF, (spec.num_groups, *w_DF.shape)).copy()
        scale_EF = None
        if w_dtype:
            scale_EF = jnp.full((spec.num_groups, spec.columns), 0.1, jnp.float32)
        self.arrays = (x_TD, w_EDF, jnp.asarray(spec.group_sizes()), scale_EF)

        def run(
            x_TD: jax.Array,
            w_EDF: jax.Array,
            group_sizes_E: jax.Array,
            w_scale_EF: jax.Array | None,
        ) -> jax.Array:
            return grouped_matmul(
                x_TD, w_EDF, group_sizes_E, w_scale_EF=w_scale_EF, implementation=implementation
            )

        start = time.perf_counter()
        traced = jax.jit(run).lower(*self.arrays)
        self.trace_seconds = time.perf_counter() - start
        start = time.perf_counter()
        self.compiled = traced.compile()
        self.compile_seconds = time.perf_counter() - start

    def __call__(self) -> jax.Array:
        return self.compiled(*self.arrays)


def measure(name: str, spec: Spec, arguments: argparse.Namespace, limits: Limits) -> dict:
    """One line of the result."""
    step = Step(spec, arguments.dtype, arguments.w_dtype, arguments.implementation)
    times = seconds_of(step, arguments.repeats)
    itemsize = jnp.dtype(arguments.dtype).itemsize
    w_itemsize = jnp.dtype(arguments.w_dtype or arguments.dtype).itemsize
    num_bytes = spec.num_bytes(itemsize, w_itemsize, itemsize)
    bound = max(num_bytes / limits.bytes_per_second, spec.flops / limits.flops_per_second)
    return {
        "spec": name,
        "min_ms": min(times) * 1e3,
        "median_ms": statistics.median(times) * 1e3,
        "megabytes": num_bytes / 1e6,
        "gigaflop": spec.flops / 1e9,
        "gigabytes_per_second": num_bytes / min(times) / 1e9,
        "gigaflops": spec.flops / min(times) / 1e9,
        "achieved": bound / min(times),
        "trace_s": step.trace_seconds,
        "compile_s": step.compile_seconds,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spec", action="append", choices=SPECS, help="default: all")
    parser.add_argument("--implementation", choices=NAMES, help="default: the first that can")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--w-dtype", choices=SCALED_DTYPES, help="default: that of x, unscaled")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    arguments = parser.parse_args(argv)

    limits = measure_limits()
    results = []
    for name in arguments.spec or SPECS:
        result = measure(name, SPECS[name], arguments, limits)
        results.append(result)
        if not arguments.json:
            figures = (f"{key} {value:.4g}" for key, value in result.items() if key != "spec")
            print(f"{name}: {', '.join(figures)}", flush=True)
    print(
        json.dumps(
            {
                "backend": jax.default_backend(),
                "implementation": arguments.implementation,
                "dtype": arguments.dtype,
                "w_dtype": arguments.w_dtype,
                "limits": dataclasses.asdict(limits),
                "results": results,
            }
        )
    )


if __name__ == "__main__":
    main()
