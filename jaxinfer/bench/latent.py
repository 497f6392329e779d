"""Decoding with latent attention: absorbed, against keys and values made anew at each step.

``python -m jaxinfer.bench.latent [--heads N] [--context L] [--rows S] [--dtype D]``; sizes of a
head are DeepSeek's. The last line is JSON.
"""

import argparse
import json
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.batch import decode_ragged
from jaxinfer.config import LatentSpec, NormSpec, RopeSpec
from jaxinfer.ops.latent import Heads, attend_latents
from jaxinfer.ops.latent_expanded import attend_expanded
from pallas_kernels import LatentPages, init_latent_pages, write_latents
from pallas_kernels.limits import seconds_of
from sharding import make_mesh

_PAGE_SIZE = 64
_REPEATS = 7
Step = Callable[..., tuple[jax.Array, LatentPages]]


def measure_latent(
    *, num_heads: int, context: int, num_rows: int, dtype: str, repeats: int = _REPEATS
) -> dict[str, Any]:
    """Milliseconds of one layer's attention in a decode step (median), of both forms.

    ``largest_difference`` of their results, which have a size of about 1.
    """
    spec = _spec(num_heads)
    arguments = _arguments(spec, num_rows, context, dtype)
    results: dict[str, jax.Array] = {}
    report: dict[str, Any] = {"num_heads": num_heads, "context": context, "num_rows": num_rows}
    for form, step in (("absorbed", _absorbed(spec)), ("expanded", _expanded(spec))):
        pages_per_row = -(-context // _PAGE_SIZE)
        pool = (1 + num_rows * pages_per_row, _PAGE_SIZE, spec.kv_rank, spec.rope_dim)
        pages = init_latent_pages(*pool, dtype)
        kernel = jax.jit(step, donate_argnums=0).lower(pages, *arguments).compile()

        def run(kernel: Callable = kernel, form: str = form) -> jax.Array:
            nonlocal pages
            results[form], pages = kernel(pages, *arguments)
            return results[form]

        report[f"{form}_ms"] = 1e3 * median(seconds_of(run, repeats))
    difference = jnp.abs(results["absorbed"] - results["expanded"]).max()
    return report | {
        "dtype": dtype,
        "speedup": report["expanded_ms"] / report["absorbed_ms"],
        "largest_difference": float(difference),
    }


def _spec(num_heads: int) -> LatentSpec:
    rope = RopeSpec(theta=1e4, rotary_dim=64, interleaved=True)
    return LatentSpec(
        num_heads=num_heads,
        kv_rank=512,
        nope_dim=128,
        rope_dim=64,
        value_dim=128,
        rope=rope,
        latent_norm=NormSpec(),
    )


def _arguments(spec: LatentSpec, num_rows: int, context: int, dtype: str) -> tuple:
    """Queries and matrices, the new latents, and where the rows are."""
    keys = iter(jax.random.split(jax.random.key(0), 6))

    def normal(*shape: int, scale: float = 1.0) -> jax.Array:
        return (jax.random.normal(next(keys), shape, jnp.float32) * scale).astype(dtype)

    rank, heads = spec.kv_rank, spec.num_heads
    pages_per_row = -(-context // _PAGE_SIZE)
    table_SM = 1 + np.arange(num_rows * pages_per_row, dtype=np.int32).reshape(num_rows, -1)
    return (
        Heads(
            q_nope_TNh=normal(num_rows, heads, spec.nope_dim),
            q_rope_TNr=normal(num_rows, heads, spec.rope_dim),
            k_up_NhR=normal(heads, spec.nope_dim, rank, scale=rank**-0.5),
            v_up_NRv=normal(heads, rank, spec.value_dim, scale=rank**-0.5),
        ),
        normal(num_rows, rank),
        normal(num_rows, spec.rope_dim),
        jnp.asarray(table_SM),
        jnp.full((num_rows,), context, jnp.int32),
    )


def _absorbed(spec: LatentSpec) -> Step:
    mesh = make_mesh({"model": 1})

    def step(pages, heads, latent_TR, rope_Tr, table_SM, kv_lens_S):
        ragged = decode_ragged(kv_lens_S)
        return attend_latents(spec, heads, latent_TR, rope_Tr, pages, table_SM, ragged, mesh=mesh)

    return step


def _expanded(spec: LatentSpec) -> Step:
    def step(pages, heads, latent_TR, rope_Tr, table_SM, kv_lens_S):
        num_rows = kv_lens_S.shape[0]
        borders = jnp.arange(num_rows + 1, dtype=jnp.int32)
        zones = jnp.full((3,), num_rows, jnp.int32)
        pages = write_latents(latent_TR, rope_Tr, pages, kv_lens_S, table_SM, borders, zones)
        out = attend_expanded(heads, pages, table_SM, kv_lens_S, scale=spec.softmax_scale)
        return out, pages

    return step


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m jaxinfer.bench.latent", description=__doc__)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    args = parser.parse_args()
    report = measure_latent(
        num_heads=args.heads, context=args.context, num_rows=args.rows, dtype=args.dtype
    )
    print(json.dumps(report))


if __name__ == "__main__":
    main()
