"""Time of ragged paged attention, and its fraction of what this machine can do.

``python -m pallas_kernels.ragged_paged_attention.bench [--spec NAME] [--implementation NAME]
[--json]``

All layers of a spec run in one compiled step, each with pages of its own and waiting for the layer
before it, as in a model. The limits are measured in the same run: bytes a second by a copy too
large for any cache, FLOPs by a float32 matrix product. A step cannot take less than the keys and
values it must read at the one and its two products at the other; ``achieved`` is the larger of
these times over the measured one. The last line of standard output is JSON.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.dispatch import NAMES
from pallas_kernels.ragged_paged_attention import (
    KVPages,
    init_kv_pages,
    ragged_paged_attention,
)
from pallas_kernels.ragged_paged_attention.pages import STORAGE
from pallas_kernels.ragged_paged_attention.specs import SPECS, Spec


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What the machine reached in this run."""

    bytes_per_second: float
    flops_per_second: float


def seconds_of(step: Callable[[], jax.Array], repeats: int) -> list[float]:
    """Wall time of each call of ``step``, after one that is not counted."""
    jax.block_until_ready(step())
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(step())
        times.append(time.perf_counter() - start)
    return times


def measure_limits(repeats: int = 5) -> Limits:
    """Bytes read and written by an update of 256 MB, FLOPs of a float32 product of side 2,048."""
    increase = jax.jit(lambda x: x + 1, donate_argnums=0)
    large = jnp.zeros(64_000_000, jnp.float32)

    def update() -> jax.Array:
        nonlocal large
        large = increase(large)
        return large

    square = jnp.ones((2048, 2048), jnp.float32)
    product = jax.jit(lambda x: x @ x)
    return Limits(
        bytes_per_second=2 * large.nbytes / min(seconds_of(update, repeats)),
        flops_per_second=2 * 2048**3 / min(seconds_of(lambda: product(square), repeats)),
    )


class Step:
    """One compiled step of a spec: all its layers, on random numbers."""

    def __init__(self, spec: Spec, pages_dtype: str, q_dtype: str, implementation: str | None):
        rng = np.random.default_rng(0)
        rows: dict[str, Any] = {name: jnp.asarray(x) for name, x in spec.describe(rng).items()}
        kv_shape = (spec.tokens, spec.num_kv_heads, spec.head_dim)
        scales = jnp.full(spec.num_kv_heads, 0.03, jnp.float32) if pages_dtype == "int8" else None
        options: dict[str, Any] = {
            "sliding_window": spec.sliding_window,
            "logit_softcap": spec.logit_softcap,
        }
        if spec.has_sinks:
            options["sinks_N"] = jnp.zeros(spec.num_heads, jnp.float32)
        group_size = spec.num_heads // spec.num_kv_heads

        def run(
            q_TNH: jax.Array, k_TKH: jax.Array, v_TKH: jax.Array, layers: list[KVPages]
        ) -> tuple[jax.Array, list[KVPages]]:
            written = []
            for pages in layers:
                out_TNH, pages = ragged_paged_attention(
                    q_TNH,
                    k_TKH,
                    v_TKH,
                    pages,
                    **rows,
                    scale=spec.head_dim**-0.5,
                    k_scale_K=scales,
                    v_scale_K=scales,
                    implementation=implementation,
                    **options,
                )
                q_TNH = out_TNH
                k_TKH = out_TNH[:, ::group_size]
                written.append(pages)
            return q_TNH, written

        q_TNH = rng.normal(size=(spec.tokens, spec.num_heads, spec.head_dim))
        k_TKH, v_TKH = rng.normal(size=(2, *kv_shape))
        self.tokens = tuple(jnp.asarray(x, q_dtype) for x in (q_TNH, k_TKH, v_TKH))
        self.layers = [
            init_kv_pages(
                spec.num_pages,
                spec.page_size,
                spec.num_kv_heads,
                spec.head_dim,
                pages_dtype,
                implementation,
            )
            for _ in range(spec.layers)
        ]
        start = time.perf_counter()
        traced = jax.jit(run, donate_argnums=3).lower(*self.tokens, self.layers)
        self.trace_seconds = time.perf_counter() - start
        start = time.perf_counter()
        self.compiled = traced.compile()
        self.compile_seconds = time.perf_counter() - start

    def __call__(self) -> jax.Array:
        out_TNH, self.layers = self.compiled(*self.tokens, self.layers)
        return out_TNH


def measure(name: str, spec: Spec, arguments: argparse.Namespace, limits: Limits) -> dict:
    """One line of the result."""
    step = Step(spec, arguments.pages_dtype, arguments.q_dtype, arguments.implementation)
    times = seconds_of(step, arguments.repeats)
    num_bytes = spec.layers * spec.kv_bytes(jnp.dtype(arguments.pages_dtype).itemsize)
    flops = spec.layers * spec.flops
    bound = max(num_bytes / limits.bytes_per_second, flops / limits.flops_per_second)
    return {
        "spec": name,
        "page_size": spec.page_size,
        "layers": spec.layers,
        "min_ms": min(times) * 1e3,
        "median_ms": statistics.median(times) * 1e3,
        "gigabytes_per_second": num_bytes / min(times) / 1e9,
        "gigaflops": flops / min(times) / 1e9,
        "achieved": bound / min(times),
        "trace_s": step.trace_seconds,
        "compile_s": step.compile_seconds,
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spec", action="append", choices=SPECS, help="default: all")
    parser.add_argument("--implementation", choices=NAMES, help="default: the first that can")
    parser.add_argument("--pages-dtype", choices=STORAGE, default="bfloat16")
    parser.add_argument("--q-dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--page-size", type=int, help="default: the spec's")
    parser.add_argument("--layers", type=int, help="default: the spec's")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    arguments = parser.parse_args(argv)
    changes = {"page_size": arguments.page_size, "layers": arguments.layers}
    changes = {field: value for field, value in changes.items() if value is not None}

    limits = measure_limits()
    results = []
    for name in arguments.spec or SPECS:
        result = measure(name, dataclasses.replace(SPECS[name], **changes), arguments, limits)
        results.append(result)
        if not arguments.json:
            figures = (f"{key} {value:.4g}" for key, value in result.items() if key != "spec")
            print(f"{name}: {', '.join(figures)}", flush=True)
    print(
        json.dumps(
            {
                "backend": jax.default_backend(),
                "implementation": arguments.implementation,
                "pages_dtype": arguments.pages_dtype,
                "q_dtype": arguments.q_dtype,
                "limits": dataclasses.asdict(limits),
                "results": results,
            }
        )
    )


if __name__ == "__main__":
    main()
