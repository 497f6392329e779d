"""The arguments of a call, checked before anything is traced or launched."""

import jax
import jax.numpy as jnp

from pallas_kernels.latent_attention.pages import Pages
from pallas_kernels.paging.arguments import QUERY_DTYPES, check_rows, require


def check_arguments(
    q_latent_TNR: jax.Array,
    q_rope_TNr: jax.Array,
    latent_TR: jax.Array | None,
    rope_Tr: jax.Array | None,
    latent_pages: Pages,
    kv_lens_S: jax.Array,
    page_table_SM: jax.Array,
    cu_q_lens_S1: jax.Array,
    distribution_3: jax.Array,
) -> None:
    """Raises ``ValueError`` for shapes and dtypes that contradict the contract."""
    _check_queries(q_latent_TNR, q_rope_TNr, latent_pages)
    _check_new(q_latent_TNR.shape[0], latent_TR, rope_Tr, latent_pages)
    check_rows(kv_lens_S, page_table_SM, cu_q_lens_S1, distribution_3)


def check_write_arguments(
    latent_TR: jax.Array,
    rope_Tr: jax.Array,
    latent_pages: Pages,
    kv_lens_S: jax.Array,
    page_table_SM: jax.Array,
    cu_q_lens_S1: jax.Array,
    distribution_3: jax.Array,
) -> None:
    """``check_arguments`` of a call that writes and does not attend."""
    shape = latent_TR.shape
    require(len(shape) == 2 and 0 not in shape, "shape of latent_TR", shape, "[T, R]")
    _check_new(shape[0], latent_TR, rope_Tr, latent_pages)
    check_rows(kv_lens_S, page_table_SM, cu_q_lens_S1, distribution_3)


def _check_queries(q_latent_TNR: jax.Array, q_rope_TNr: jax.Array, pages: Pages) -> None:
    shape, dtype = q_latent_TNR.shape, q_latent_TNR.dtype
    require(len(shape) == 3 and 0 not in shape, "shape of q_latent_TNR", shape, "[T, N, R]")
    require(
        shape[2] == pages.latent_rank,
        "latent rank of q_latent_TNR",
        shape[2],
        f"{pages.latent_rank}, as paged",
    )
    allowed = (*shape[:2], pages.rope_dim)
    require(
        q_rope_TNr.shape == allowed,
        "shape of q_rope_TNr",
        q_rope_TNr.shape,
        f"[T, N, r] = {allowed}",
    )
    require(dtype.name in QUERY_DTYPES, "dtype of q_latent_TNR", dtype, " or ".join(QUERY_DTYPES))
    require(
        q_rope_TNr.dtype == dtype,
        "dtype of q_rope_TNr",
        q_rope_TNr.dtype,
        f"{dtype}, that of q_latent_TNR",
    )


def _check_new(
    num_tokens: int, latent_TR: jax.Array | None, rope_Tr: jax.Array | None, pages: Pages
) -> None:
    if latent_TR is None or rope_Tr is None:
        require(
            latent_TR is rope_Tr,
            "one of latent_TR and rope_Tr",
            None,
            "None together with the other",
        )
        return
    for name, x, axes, size in (
        ("latent_TR", latent_TR, "[T, R]", pages.latent_rank),
        ("rope_Tr", rope_Tr, "[T, r]", pages.rope_dim),
    ):
        shape = (num_tokens, size)
        require(x.shape == shape, f"shape of {name}", x.shape, f"{axes} = {shape}")
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        require(is_float, f"dtype of {name}", x.dtype, "a float dtype")
