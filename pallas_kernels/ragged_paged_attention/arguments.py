"""The arguments of a call, checked before anything is traced or launched."""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.ragged_paged_attention.pages import Pages

QUERY_DTYPES = ("float32", "bfloat16", "float16")


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raises ``ValueError`` with the value and what is allowed, unless ``condition`` holds."""
    if not condition:
        raise ValueError(f"{name} = {value} is not allowed: it must be {allowed}")


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


def check_rows(
    kv_lens_S: jax.Array,
    page_table_SM: jax.Array,
    cu_q_lens_S1: jax.Array,
    distribution_3: jax.Array,
) -> None:
    """Raises ``ValueError`` unless the arrays that describe the rows fit each other."""
    is_table = page_table_SM.ndim == 2 and 0 not in page_table_SM.shape
    require(is_table, "shape of page_table_SM", page_table_SM.shape, "[S, M]")
    slots = page_table_SM.shape[0]
    for name, x, shape in (
        ("kv_lens_S", kv_lens_S, (slots,)),
        ("page_table_SM", page_table_SM, page_table_SM.shape),
        ("cu_q_lens_S1", cu_q_lens_S1, (slots + 1,)),
        ("distribution_3", distribution_3, (3,)),
    ):
        require(x.shape == shape, f"shape of {name}", x.shape, f"{shape}")
        require(x.dtype == jnp.int32, f"dtype of {name}", x.dtype, "int32")


def check_row_values(
    num_tokens: int,
    pages: Pages,
    kv_lens_S: jax.Array,
    page_table_SM: jax.Array,
    cu_q_lens_S1: jax.Array,
    distribution_3: jax.Array,
) -> None:
    """Raises ``ValueError`` where numbers that are known contradict each other.

    Known are those of a call outside of ``jax.jit``. Inside of it they are not, and an
    implementation takes rows that contradict themselves for idle, and such pages for none.
    """
    given = (kv_lens_S, page_table_SM, cu_q_lens_S1, distribution_3)
    if any(isinstance(x, jax.core.Tracer) for x in given):
        return
    kv_lens, table, borders, zones = map(np.asarray, given)
    num_slots, pages_per_row = table.shape
    is_rising = 0 <= zones[0] <= zones[1] <= zones[2] <= num_slots
    require(is_rising, "distribution_3", zones.tolist(), f"rising, from 0 to {num_slots} rows")
    kv_lens, table, borders = kv_lens[: zones[2]], table[: zones[2]], borders[: zones[2] + 1]
    most = pages_per_row * pages.page_size
    _require_all(
        (kv_lens >= 0) & (kv_lens <= most),
        "kv_lens_S",
        kv_lens,
        f"0 to {most}, what {pages_per_row} pages of {pages.page_size} hold",
    )
    _require_all(
        (borders >= 0) & (borders <= num_tokens) & (np.diff(borders, prepend=0) >= 0),
        "cu_q_lens_S1",
        borders,
        f"rising, from 0 to {num_tokens} tokens",
    )
    is_active = kv_lens > 0
    new = np.diff(borders)
    num_decode = zones[0]
    is_single = ~is_active[:num_decode] | (new[:num_decode] == 1)
    name = "new tokens of decode row cu_q_lens_S1"
    _require_all(is_single, name, new[:num_decode], "1, as distribution_3 says")
    fits = ~is_active | (new <= kv_lens)
    _require_all(fits, "new tokens of cu_q_lens_S1", new, "no more than kv_lens_S counts")
    is_page = (table >= 0) & (table < pages.num_pages) | ~is_active[:, None]
    _require_all(is_page, "page_table_SM", table, f"0 (none) to {pages.num_pages - 1}")


def _require_all(is_allowed: np.ndarray, name: str, values: np.ndarray, allowed: str) -> None:
    if not is_allowed.all():
        place = tuple(np.argwhere(~is_allowed)[0].tolist())
        require(False, f"{name}{list(place)}", int(values[place]), allowed)
