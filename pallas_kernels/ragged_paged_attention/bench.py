"""Time of ragged paged attention on the chip that is here, and its fraction of what that can do.

``python -m pallas_kernels.ragged_paged_attention.bench [--spec NAME] [--implementation NAME]
[--json]``

All layers of a spec run in one compiled step, each with pages of its own and waiting for the layer
before it, as in a model; pages are donated. Limits are measured in the same run (``limits.py``).
A step cannot take less than the keys and values it must read, or than its two products, at these
limits; ``achieved`` is the larger of the two times over the measured one. A spec that the
implementation refuses is listed with its reason. The last line of standard output is JSON.
"""

import argparse
import dataclasses
import json
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.dispatch import NAMES, NoImplementation
from pallas_kernels.limits import Limits, is_accelerator, measure_limits, seconds_of
from pallas_kernels.ragged_paged_attention import (
    KVPages,
    init_kv_pages,
    ragged_paged_attention,
)
from pallas_kernels.ragged_paged_attention.pages import STORAGE
from pallas_kernels.ragged_paged_attention.specs import ACCELERATOR_SPECS, SPECS, Spec


class Step:
    """One compiled step of a spec: all its layers, on random numbers."""

    def __init__(self, spec: Spec, q_dtype: str, implementation: str | None):
        rng = np.random.default_rng(0)
        described = spec.describe(rng)
        num_decode, num_prefill, num_rows = described["distribution_3"]
        # Programs for rows of one kind are compiled as such; a mixed one serves any mixture.
        is_of_one_kind = num_decode == num_rows or (num_decode == 0 and num_prefill == num_rows)
        zones: dict[str, Any] = (
            {"distribution_3": described.pop("distribution_3")} if is_of_one_kind else {}
        )
        kv_shape = (spec.tokens, spec.num_kv_heads, spec.head_dim)
        is_int8 = spec.pages_dtype == "int8"
        scales = jnp.full(spec.num_kv_heads, 0.03, jnp.float32) if is_int8 else None
        options: dict[str, Any] = {
            "sliding_window": spec.sliding_window,
            "logit_softcap": spec.logit_softcap,
        }
        if spec.has_sinks:
            options["sinks_N"] = jnp.zeros(spec.num_heads, jnp.float32)
        group_size = spec.num_heads // spec.num_kv_heads

        def run(
            layers: list[KVPages],
            q_TNH: jax.Array,
            k_TKH: jax.Array,
            v_TKH: jax.Array,
            rows: dict[str, Any],
        ) -> tuple[jax.Array, list[KVPages]]:
            written = []
            for pages in layers:
                out_TNH, pages = ragged_paged_attention(
                    q_TNH,
                    k_TKH,
                    v_TKH,
                    pages,
                    **rows,
                    **zones,
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
        self.arguments = (
            *(jnp.asarray(x, q_dtype) for x in (q_TNH, k_TKH, v_TKH)),
            {name: jnp.asarray(x) for name, x in described.items()},
        )
        self.layers = [
            init_kv_pages(
                spec.num_pages,
                spec.page_size,
                spec.num_kv_heads,
                spec.head_dim,
                spec.pages_dtype,
                implementation,
            )
            for _ in range(spec.layers)
        ]
        start = time.perf_counter()
        traced = jax.jit(run, donate_argnums=0).lower(self.layers, *self.arguments)
        self.trace_seconds = time.perf_counter() - start
        start = time.perf_counter()
        self.compiled = traced.compile()
        self.compile_seconds = time.perf_counter() - start

    def __call__(self) -> jax.Array:
        out_TNH, self.layers = self.compiled(self.layers, *self.arguments)
        return out_TNH


def measure(name: str, spec: Spec, arguments: argparse.Namespace, limits: Limits) -> dict:
    """One line of the result."""
    kind = {"spec": name, "pages_dtype": spec.pages_dtype, "page_size": spec.page_size}
    try:
        step = Step(spec, arguments.q_dtype, arguments.implementation)
    except NoImplementation as refusal:
        return {**kind, "refused": str(refusal)}
    times = seconds_of(step, arguments.repeats)
    num_bytes = spec.layers * spec.kv_bytes(jnp.dtype(spec.pages_dtype).itemsize)
    flops = spec.layers * spec.flops
    return {
        **kind,
        "layers": spec.layers,
        "min_ms": min(times) * 1e3,
        "median_ms": statistics.median(times) * 1e3,
        "gigabytes": num_bytes / 1e9,
        "gigabytes_per_second": num_bytes / min(times) / 1e9,
        "gigaflop": flops / 1e9,
        "gigaflops": flops / min(times) / 1e9,
        "achieved": limits.least_seconds(num_bytes, flops) / min(times),
        "trace_s": step.trace_seconds,
        "compile_s": step.compile_seconds,
    }


def main(argv: list[str] | None = None) -> None:
    every = SPECS | ACCELERATOR_SPECS
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--spec", action="append", choices=every, help="default: all that suit the chip"
    )
    parser.add_argument("--implementation", choices=NAMES, help="default: the first that can")
    parser.add_argument("--pages-dtype", choices=STORAGE, help="default: the spec's")
    parser.add_argument("--q-dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--page-size", type=int, help="default: the spec's")
    parser.add_argument("--layers", type=int, help="default: the spec's")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    arguments = parser.parse_args(argv)
    changes = {name: getattr(arguments, name) for name in ("pages_dtype", "page_size", "layers")}
    changes = {field: value for field, value in changes.items() if value is not None}

    # On the CPU all products are of float32, whatever the queries are.
    limits = measure_limits(arguments.q_dtype if is_accelerator() else "float32")
    results = []
    for name in arguments.spec or (every if is_accelerator() else SPECS):
        result = measure(name, dataclasses.replace(every[name], **changes), arguments, limits)
        results.append(result)
        if not arguments.json:
            figures = (
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in result.items()
                if key != "spec"
            )
            print(f"{name}: {', '.join(figures)}", flush=True)
    print(
        json.dumps(
            {
                "backend": jax.default_backend(),
                "chip": jax.devices()[0].device_kind,
                "implementation": arguments.implementation,
                "q_dtype": arguments.q_dtype,
                "limits": dataclasses.asdict(limits),
                "results": results,
            }
        )
    )


if __name__ == "__main__":
    main()
