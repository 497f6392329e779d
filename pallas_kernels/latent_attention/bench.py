"""Time of latent attention on the chip that is here, and its fraction of what that can do.

``python -m pallas_kernels.latent_attention.bench [--spec NAME] [--implementation NAME] [--json]``

All layers of a spec run in one compiled step, each with pages of its own and waiting for the layer
before it, as in a model; pages are donated. The limits are measured in the same run, as in the
bench of ``ragged_paged_attention``. A step cannot take less than the latents it must read, or than
its two products, at these limits; ``achieved`` is the larger of the two times over the measured
one. A spec that the implementation refuses is listed with its reason. The last line of standard
output is JSON.
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
from pallas_kernels.latent_attention import LatentPages, init_latent_pages, latent_attention
from pallas_kernels.latent_attention.pages import STORAGE
from pallas_kernels.latent_attention.specs import SPECS, Spec
from pallas_kernels.ragged_paged_attention.bench import Limits, measure_limits, seconds_of


class Step:
    """One compiled step of a spec: all its layers, on random numbers."""

    def __init__(self, spec: Spec, pages_dtype: str, q_dtype: str, implementation: str | None):
        rng = np.random.default_rng(0)
        batch = spec.batch
        rows: dict[str, Any] = {name: jnp.asarray(x) for name, x in batch.describe(rng).items()}
        sizes = (batch.num_pages, spec.page_size, spec.latent_rank, spec.rope_dim)

        def run(
            layers: list[LatentPages],
            q_latent_TNR: jax.Array,
            q_rope_TNr: jax.Array,
            latent_TR: jax.Array,
            rope_Tr: jax.Array,
        ) -> tuple[jax.Array, list[LatentPages]]:
            written = []
            for pages in layers:
                q_latent_TNR, pages = latent_attention(
                    q_latent_TNR,
                    q_rope_TNr,
                    latent_TR,
                    rope_Tr,
                    pages,
                    **rows,
                    scale=spec.scale,
                    implementation=implementation,
                )
                latent_TR = q_latent_TNR[:, 0]
                written.append(pages)
            return q_latent_TNR, written

        tokens, heads = batch.tokens, spec.num_heads
        self.arguments = tuple(
            jnp.asarray(rng.normal(size=shape), q_dtype)
            for shape in (
                (tokens, heads, spec.latent_rank),
                (tokens, heads, spec.rope_dim),
                (tokens, spec.latent_rank),
                (tokens, spec.rope_dim),
            )
        )
        self.layers = [
            init_latent_pages(*sizes, pages_dtype, implementation) for _ in range(spec.layers)
        ]
        start = time.perf_counter()
        traced = jax.jit(run, donate_argnums=0).lower(self.layers, *self.arguments)
        self.trace_seconds = time.perf_counter() - start
        start = time.perf_counter()
        self.compiled = traced.compile()
        self.compile_seconds = time.perf_counter() - start

    def __call__(self) -> jax.Array:
        out_TNR, self.layers = self.compiled(self.layers, *self.arguments)
        return out_TNR


def measure(name: str, spec: Spec, arguments: argparse.Namespace, limits: Limits) -> dict:
    """One line of the result."""
    kind = {"spec": name, "pages_dtype": arguments.pages_dtype, "page_size": spec.page_size}
    try:
        step = Step(spec, arguments.pages_dtype, arguments.q_dtype, arguments.implementation)
    except NoImplementation as refusal:
        return {**kind, "refused": str(refusal)}
    times = seconds_of(step, arguments.repeats)
    num_bytes = spec.layers * spec.latent_bytes(jnp.dtype(arguments.pages_dtype).itemsize)
    flops = spec.layers * spec.flops
    bound = max(num_bytes / limits.bytes_per_second, flops / limits.flops_per_second)
    return {
        **kind,
        "layers": spec.layers,
        "min_ms": min(times) * 1e3,
        "median_ms": statistics.median(times) * 1e3,
        "gigabytes": num_bytes / 1e9,
        "gigabytes_per_second": num_bytes / min(times) / 1e9,
        "gigaflop": flops / 1e9,
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
