"""A step of one layer, at full size, against the reference in float32."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.paging import checked
from pallas_kernels.paging.pool import rounded_tokens
from pallas_kernels.ragged_paged_attention import (
    KVPages,
    init_kv_pages,
    ragged_paged_attention,
    scatter_kv_pages,
)
from pallas_kernels.ragged_paged_attention.gpu_pages import GpuKVPages
from pallas_kernels.ragged_paged_attention.specs import Spec
from pallas_kernels.tolerance import TOLERANCE, errors_of


def errors(
    spec: Spec,
    options: dict[str, Any],
    page_table_SM: np.ndarray,
    new: tuple[jax.Array, jax.Array, jax.Array],
    before: KVPages,
    out_TNH: jax.Array,
    after: KVPages,
) -> dict[str, float]:
    """Of a call with ``options`` on ``new`` queries, keys and values, which made ``after`` of
    ``before``. See ``errors_of``; ``wrong_in_pages`` counts numbers."""
    q_TNH, k_TKH, v_TKH = new
    places, token_n = checked.places_of(spec, page_table_SM), checked.drawn_tokens(spec)

    @jax.jit
    def rounded(k_TKH: jax.Array, v_TKH: jax.Array) -> tuple[jax.Array, jax.Array]:
        # Constant scales, as in the call: XLA may multiply by their reciprocals.
        return (
            rounded_tokens(k_TKH, before.dtype, options["k_scale_K"]),
            rounded_tokens(v_TKH, before.dtype, options["v_scale_K"]),
        )

    def attend(
        queries: tuple[jax.Array, ...], parts: tuple[jax.Array, jax.Array], rows: Any
    ) -> jax.Array:
        keys_MpKH, values_MpKH = parts
        num_pages, page_size, kv_heads, head_dim = keys_MpKH.shape
        pages = init_kv_pages(
            num_pages + 1, page_size, kv_heads, head_dim, before.dtype, implementation="reference"
        )
        pages = scatter_kv_pages(pages, jnp.arange(1, num_pages + 1), keys_MpKH, values_MpKH)
        (q_1NH,) = queries
        out_1NH, _ = ragged_paged_attention(
            q_1NH, None, None, pages, *rows, **options, implementation="reference"
        )
        return out_1NH

    expected_nNH = checked.attend_alone(attend, (q_TNH,), after, places, token_n)
    return {
        **errors_of(out_TNH[token_n], expected_nNH, rounded_to(q_TNH, after)),
        "wrong_in_pages": checked.count_wrong(before, after, rounded(k_TKH, v_TKH), places),
        "checked_tokens": token_n.size,
    }


def rounded_to(q_TNH: jax.Array, pages: KVPages) -> str:
    """What a kernel rounds to most, results or what it multiplies; by its name in ``TOLERANCE``."""
    kinds = [q_TNH.dtype.name]
    if isinstance(pages, GpuKVPages):
        kinds.append("two bfloat16" if pages.dtype == jnp.float32 else "bfloat16")
    return max(kinds, key=TOLERANCE.__getitem__)
