"""Time of ragged paged attention, see ``pallas_kernels.benchmark``.

``python -m pallas_kernels.ragged_paged_attention.bench [--spec NAME] [--implementation NAME]
[--json]``

All layers of a spec run in one compiled step, each with pages of its own and waiting for the layer
before it, as in a model; pages are donated. A step cannot take less than the keys and values it
must read, or than its two products.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.benchmark import Case, Operation, main, random_like, repeated
from pallas_kernels.ragged_paged_attention import (
    KVPages,
    init_kv_pages,
    ragged_paged_attention,
)
from pallas_kernels.ragged_paged_attention.pages import STORAGE
from pallas_kernels.ragged_paged_attention.specs import ACCELERATOR_SPECS, SPECS, WINDOW_SPECS, Spec


def case(spec: Spec, dtype: str, implementation: str | None = None) -> Case:
    """All layers of a spec as one step, on random numbers; ``dtype`` is that of the queries."""
    described = spec.describe(np.random.default_rng(0))
    zones: dict[str, Any] = {}
    if spec.is_of_one_kind:  # Programs for rows of one kind are compiled as such.
        zones["distribution_3"] = described.pop("distribution_3")
    is_int8 = spec.pages_dtype == "int8"
    group_size = spec.num_heads // spec.num_kv_heads

    def run(
        layers: list[KVPages],
        q_TNH: jax.Array,
        k_TKH: jax.Array,
        v_TKH: jax.Array,
        rows: dict[str, Any],
    ) -> tuple[jax.Array, list[KVPages]]:
        scales = jnp.full(spec.num_kv_heads, 0.03, jnp.float32) if is_int8 else None
        sinks = jnp.zeros(spec.num_heads, jnp.float32) if spec.has_sinks else None
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
                sliding_window=spec.sliding_window,
                logit_softcap=spec.logit_softcap,
                sinks_N=sinks,
                k_scale_K=scales,
                v_scale_K=scales,
                implementation=implementation,
            )
            q_TNH = out_TNH
            k_TKH = out_TNH[:, ::group_size]
            written.append(pages)
        return q_TNH, written

    def make() -> tuple[list[KVPages], tuple]:
        *keys, k_key, v_key = jax.random.split(jax.random.key(0), 5)
        heads = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
        new = (
            jax.random.normal(key, (spec.tokens, count, spec.head_dim), jnp.float32).astype(dtype)
            for key, count in zip(keys, heads, strict=True)
        )
        sizes = (spec.page_size, spec.num_kv_heads, spec.head_dim)
        page = init_kv_pages(1, *sizes, spec.pages_dtype, implementation)
        page = page.write(
            jnp.zeros(1, jnp.int32),
            random_like(k_key, (1, *sizes), page.dtype),
            random_like(v_key, (1, *sizes), page.dtype),
        )
        layers = [repeated(page, spec.num_pages) for _ in range(spec.layers)]
        return layers, (*new, {name: jnp.asarray(x) for name, x in described.items()})

    return Case(
        run=run,
        make=make,
        num_bytes=spec.layers * spec.kv_bytes(jnp.dtype(spec.pages_dtype).itemsize),
        flops=spec.layers * spec.flops,
        facts={
            "layers": spec.layers,
            "pages_dtype": spec.pages_dtype,
            "page_size": spec.page_size,
        },
    )


OPERATION = Operation(
    name="ragged_paged_attention",
    specs=SPECS,
    large_specs={**ACCELERATOR_SPECS, **WINDOW_SPECS},
    case=case,
    changes={
        "pages_dtype": tuple(STORAGE),
        "page_size": int,
        "layers": int,
        "sliding_window": int,
    },
)

if __name__ == "__main__":
    main(OPERATION)
