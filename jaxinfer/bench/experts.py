"""A step of one mixture of experts: it costs what its tokens chose, not what experts there are.

``python -m jaxinfer.bench.experts [--experts 8 32 128] [--tokens 1 8] [--json]``
"""

import argparse
import json
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.config import MlpSpec, RouterSpec
from jaxinfer.ops.experts import ExpertWeights, apply_experts, route
from sharding import make_mesh


def measure_experts(
    num_experts: int,
    num_tokens: int,
    *,
    top_k: int = 2,
    width: int = 2048,
    expert_width: int = 768,
    dtype: str = "bfloat16",
    repeats: int = 30,
) -> dict[str, Any]:
    """Times routing and experts of steps that choose at random, other experts each time.

    Returns ``min_ms`` and ``median_ms``, the mean number of ``experts_hit`` in a step, the
    megabytes of these (``mb_hit``) and of all experts (``mb_there``), and the gigabytes a second
    that reading the former in the median time makes.
    """
    spec = MlpSpec(width=expert_width)
    router = RouterSpec(num_experts=num_experts, top_k=top_k)
    mesh, rng = make_mesh(), np.random.default_rng(0)

    def matrices(size_in: int, size_out: int) -> jax.Array:
        # Each of its own in memory, which is all that counts.
        one = jax.random.normal(jax.random.key(0), (size_in, size_out), jnp.float32)
        one = (one * size_in**-0.5).astype(dtype)
        return jnp.array(jnp.broadcast_to(one, (num_experts, size_in, size_out)))

    wide, narrow = (width, expert_width), (expert_width, width)
    weights = ExpertWeights(matrices(*wide), matrices(*wide), matrices(*narrow), None, None, None)
    x_TD = jnp.asarray(rng.normal(size=(num_tokens, width)), dtype)
    live_T = jnp.ones(num_tokens, bool)

    @jax.jit
    def step(weights: ExpertWeights, x_TD: jax.Array, logits_TE: jax.Array) -> jax.Array:
        routes = route(router, logits_TE, None)
        return apply_experts(spec, weights, x_TD, routes, live_T, mesh=mesh)

    times, hits = [], []
    for nth in range(1 + repeats):
        logits_TE = jnp.asarray(rng.normal(size=(num_tokens, num_experts)), jnp.float32)
        chosen_TC = np.argsort(-np.asarray(logits_TE), axis=-1)[:, :top_k]
        begin = time.perf_counter()
        jax.block_until_ready(step(weights, x_TD, logits_TE))
        if nth > 0:  # The first one compiles.
            times.append(time.perf_counter() - begin)
            hits.append(len(np.unique(chosen_TC)))
    an_expert = 3 * width * expert_width * jnp.dtype(dtype).itemsize
    median, mean_hits = statistics.median(times), statistics.mean(hits)
    return {
        "experts": num_experts,
        "tokens": num_tokens,
        "min_ms": 1e3 * min(times),
        "median_ms": 1e3 * median,
        "experts_hit": mean_hits,
        "mb_hit": mean_hits * an_expert / 1e6,
        "mb_there": num_experts * an_expert / 1e6,
        "gb_per_second": mean_hits * an_expert / median / 1e9,
    }


def main(argv: list[str] | None = None) -> None:
    """The command; with ``--json`` it prints nothing but one line."""
    parser = argparse.ArgumentParser(prog="python -m jaxinfer.bench.experts", description=__doc__)
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--expert-width", type=int, default=768)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    options = vars(parser.parse_args(argv))
    as_json, all_experts, all_tokens = (options.pop(n) for n in ("json", "experts", "tokens"))
    results = []
    for num_tokens in all_tokens:
        for num_experts in all_experts:
            results.append(measure_experts(num_experts, num_tokens, **options))
            if not as_json:
                print(", ".join(f"{name} {value:.4g}" for name, value in results[-1].items()))
    if as_json:
        print(json.dumps({"chip": jax.devices()[0].device_kind, **options, "results": results}))


if __name__ == "__main__":
    main()
