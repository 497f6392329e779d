"""The arguments of a call, checked before anything is traced or launched."""

import jax
import jax.numpy as jnp

from pallas_kernels.paging.arguments import QUERY_DTYPES, check_rows, require
from pallas_kernels.paging.pool import Pages


def check_arguments(
    q_TNH: jax.Array,
    k_TKH: jax.Array | None,
    v_TKH: jax.Array | None,
    kv_pages: Pages,
    kv_lens_S: jax.Array,
    page_table_SM: jax.Array,
    cu_q_lens_S1: jax.Array,
    distribution_3: jax.Array,
    sinks_N: jax.Array | None,
    k_scale_K: jax.Array | None,
    v_scale_K: jax.Array | None,
) -> None:
    """Raises ``ValueError`` for shapes and dtypes that contradict the contract."""
    _check_heads(q_TNH, k_TKH, v_TKH, kv_pages)
    _check_scales(kv_pages, sinks_N, k_scale_K, v_scale_K, num_heads=q_TNH.shape[1])
    check_rows(kv_lens_S, page_table_SM, cu_q_lens_S1, distribution_3)


def _check_heads(
    q_TNH: jax.Array, k_TKH: jax.Array | None, v_TKH: jax.Array | None, kv_pages: Pages
) -> None:
    kv_heads, head_dim = kv_pages.num_kv_heads, kv_pages.head_dim
    require(q_TNH.ndim == 3 and 0 not in q_TNH.shape, "shape of q_TNH", q_TNH.shape, "[T, N, H]")
    num_tokens, num_heads, _ = q_TNH.shape
    require(
        q_TNH.dtype.name in QUERY_DTYPES, "dtype of q_TNH", q_TNH.dtype, " or ".join(QUERY_DTYPES)
    )
    require(
        q_TNH.shape[2] == head_dim, "head dim of q_TNH", q_TNH.shape[2], f"{head_dim}, as paged"
    )
    require(
        num_heads % kv_heads == 0,
        "number of query heads",
        num_heads,
        f"a multiple of the {kv_heads} kv heads",
    )
    if k_TKH is None or v_TKH is None:
        require(k_TKH is v_TKH, "one of k_TKH and v_TKH", None, "None together with the other")
        return
    for name, x in (("k_TKH", k_TKH), ("v_TKH", v_TKH)):
        shape = (num_tokens, kv_heads, head_dim)
        require(x.shape == shape, f"shape of {name}", x.shape, f"[T, K, H] = {shape}")
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        require(is_float, f"dtype of {name}", x.dtype, "a float dtype")


def _check_scales(
    kv_pages: Pages,
    sinks_N: jax.Array | None,
    k_scale_K: jax.Array | None,
    v_scale_K: jax.Array | None,
    *,
    num_heads: int,
) -> None:
    for name, x, size in (
        ("sinks_N", sinks_N, num_heads),
        ("k_scale_K", k_scale_K, kv_pages.num_kv_heads),
        ("v_scale_K", v_scale_K, kv_pages.num_kv_heads),
    ):
        if x is None:
            continue
        require(x.shape == (size,), f"shape of {name}", x.shape, f"({size},)")
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        require(is_float, f"dtype of {name}", x.dtype, "a float dtype")
    if kv_pages.dtype == jnp.int8:
        for name, x in (("k_scale_K", k_scale_K), ("v_scale_K", v_scale_K)):
            require(x is not None, name, None, "given for int8 pages")
