"""Time of latent attention, see ``pallas_kernels.benchmark``.

``python -m pallas_kernels.latent_attention.bench [--spec NAME] [--implementation NAME] [--check]
[--json]``

All layers of a spec run in one compiled step, each with pages of its own and waiting for the layer
before it, as in a model; pages are donated. A step cannot take less than the latents it must read,
or than its two products.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.benchmark import Case, Operation, each_drawn, main, random_like
from pallas_kernels.latent_attention import (
    LatentPages,
    check,
    init_latent_pages,
    latent_attention,
)
from pallas_kernels.latent_attention.pages import STORAGE
from pallas_kernels.latent_attention.specs import SPECS, Spec


def case(spec: Spec, dtype: str, implementation: str | None = None) -> Case:
    """All layers of a spec as one step, on random numbers; ``dtype`` is that of the queries."""
    described = spec.describe(np.random.default_rng(0))
    zones: dict[str, Any] = {}
    if spec.is_of_one_kind:  # Programs for rows of one kind are compiled as such.
        zones["distribution_3"] = described.pop("distribution_3")

    def run(
        layers: list[LatentPages],
        q_latent_TNR: jax.Array,
        q_rope_TNr: jax.Array,
        latent_TR: jax.Array,
        rope_Tr: jax.Array,
        rows: dict[str, Any],
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
                **zones,
                scale=spec.scale,
                implementation=implementation,
            )
            latent_TR = q_latent_TNR[:, 0]
            written.append(pages)
        return q_latent_TNR, written

    def page(key: jax.Array) -> LatentPages:
        widths = (spec.latent_rank, spec.rope_dim)
        page = init_latent_pages(1, spec.page_size, *widths, spec.pages_dtype, implementation)
        numbers = (
            random_like(key, (1, spec.page_size, width), page.dtype)
            for key, width in zip(jax.random.split(key), widths, strict=True)
        )
        return page.write(jnp.zeros(1, jnp.int32), *numbers)

    draw_pages = each_drawn(page, spec.num_pages)

    def make() -> tuple[list[LatentPages], tuple]:
        tokens, heads = spec.tokens, spec.num_heads
        shapes = (
            (tokens, heads, spec.latent_rank),
            (tokens, heads, spec.rope_dim),
            (tokens, spec.latent_rank),
            (tokens, spec.rope_dim),
        )
        *keys, pages_key = jax.random.split(jax.random.key(0), len(shapes) + 1)
        new = (
            jax.random.normal(key, shape, jnp.float32).astype(dtype)
            for key, shape in zip(keys, shapes, strict=True)
        )
        layer = draw_pages(pages_key)
        layers = [layer, *(jax.tree.map(jnp.copy, layer) for _ in range(1, spec.layers))]
        return layers, (*new, {name: jnp.asarray(x) for name, x in described.items()})

    def errors(before: list, arguments: tuple, out_TNR: jax.Array, after: list) -> dict:
        (was,), (now,), new = before, after, arguments[:4]
        return check.errors(spec, described["page_table_SM"], new, was, out_TNR, now)

    return Case(
        run=run,
        make=make,
        errors=errors,
        num_bytes=spec.layers * spec.latent_bytes(jnp.dtype(spec.pages_dtype).itemsize),
        flops=spec.layers * spec.flops,
        facts={
            "layers": spec.layers,
            "pages_dtype": spec.pages_dtype,
            "page_size": spec.page_size,
        },
    )


OPERATION = Operation(
    name="latent_attention",
    specs=SPECS,
    large_specs={},
    case=case,
    changes={"pages_dtype": tuple(STORAGE), "page_size": int, "layers": int},
)

if __name__ == "__main__":
    main(OPERATION)
