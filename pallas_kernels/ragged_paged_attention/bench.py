"""Time of ragged paged attention, see ``pallas_kernels.benchmark``.

``python -m pallas_kernels.ragged_paged_attention.bench [--spec NAME] [--implementation NAME]
[--check] [--json]``

All layers of a spec run in one compiled step, each with pages of its own and waiting for the layer
before it, as in a model; pages are donated. A step cannot take less than the keys and values it
must read, or than its two products.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.benchmark import Case, Operation, each_drawn, main, random_like
from pallas_kernels.ragged_paged_attention import (
    KVPages,
    check,
    init_kv_pages,
    ragged_paged_attention,
)
from pallas_kernels.ragged_paged_attention.pages import STORAGE
from pallas_kernels.ragged_paged_attention.specs import ACCELERATOR_SPECS, SPECS, WINDOW_SPECS, Spec


def options_of(spec: Spec) -> dict[str, Any]:
    """What a call has besides arrays of a batch; a scale and a sink are of one head alone."""

    def along_heads(first: float, last: float, count: int) -> jax.Array:
        return jnp.asarray(np.linspace(first, last, count), jnp.float32)

    scales = along_heads(0.02, 0.04, spec.num_kv_heads) if spec.pages_dtype == "int8" else None
    return {
        "scale": spec.head_dim**-0.5,
        "sliding_window": spec.sliding_window,
        "logit_softcap": spec.logit_softcap,
        "sinks_N": along_heads(-1.0, 1.0, spec.num_heads) if spec.has_sinks else None,
        "k_scale_K": scales,
        "v_scale_K": scales,
    }


def case(spec: Spec, dtype: str, implementation: str | None = None) -> Case:
    """All layers of a spec as one step, on random numbers; ``dtype`` is that of the queries."""
    described = spec.describe(np.random.default_rng(0))
    zones: dict[str, Any] = {}
    if spec.is_of_one_kind:  # Programs for rows of one kind are compiled as such.
        zones["distribution_3"] = described.pop("distribution_3")
    group_size = spec.num_heads // spec.num_kv_heads

    def run(
        layers: list[KVPages],
        q_TNH: jax.Array,
        k_TKH: jax.Array,
        v_TKH: jax.Array,
        rows: dict[str, Any],
    ) -> tuple[jax.Array, list[KVPages]]:
        options, written = options_of(spec), []
        for pages in layers:
            out_TNH, pages = ragged_paged_attention(
                q_TNH,
                k_TKH,
                v_TKH,
                pages,
                **rows,
                **zones,
                **options,
                implementation=implementation,
            )
            q_TNH = out_TNH
            k_TKH = out_TNH[:, ::group_size]
            written.append(pages)
        return q_TNH, written

    def page(key: jax.Array) -> KVPages:
        sizes = (1, spec.page_size, spec.num_kv_heads, spec.head_dim)
        page = init_kv_pages(*sizes, spec.pages_dtype, implementation)
        numbers = (random_like(key, sizes, page.dtype) for key in jax.random.split(key))
        return page.write(jnp.zeros(1, jnp.int32), *numbers)

    draw_pages = each_drawn(page, spec.num_pages)

    def make() -> tuple[list[KVPages], tuple]:
        *keys, pages_key = jax.random.split(jax.random.key(0), 4)
        heads = (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)
        new = (
            jax.random.normal(key, (spec.tokens, count, spec.head_dim), jnp.float32).astype(dtype)
            for key, count in zip(keys, heads, strict=True)
        )
        layer = draw_pages(pages_key)
        layers = [layer, *(jax.tree.map(jnp.copy, layer) for _ in range(1, spec.layers))]
        return layers, (*new, {name: jnp.asarray(x) for name, x in described.items()})

    def errors(before: list[KVPages], arguments: tuple, out_TNH: jax.Array, after: list) -> dict:
        (was,), (now,), new = before, after, arguments[:3]
        table_SM = described["page_table_SM"]
        return check.errors(spec, options_of(spec), table_SM, new, was, out_TNH, now)

    return Case(
        run=run,
        make=make,
        errors=errors,
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
