"""The arguments that describe rows, checked before anything is traced or launched."""

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.paging.pool import Pages

QUERY_DTYPES = ("float32", "bfloat16", "float16")


def require(condition: bool, name: str, value: object, allowed: str) -> None:
    """Raises ``ValueError`` with the value and what is allowed, unless ``condition`` holds."""
    if not condition:
        raise ValueError(f"{name} = {value} is not allowed: it must be {allowed}")


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

    Known are all of a call outside of ``jax.jit``, and constants inside of it. Of the others an
    implementation takes rows that contradict themselves for idle, and such pages for none.
    """
    zones = _known(distribution_3)
    num_slots, pages_per_row = page_table_SM.shape
    if zones is None:  # Then any row may be padding, and hold anything.
        return
    is_rising = 0 <= zones[0] <= zones[1] <= zones[2] <= num_slots
    require(is_rising, "distribution_3", zones.tolist(), f"rising, from 0 to {num_slots} rows")
    num_decode, _, num_rows = zones
    kv_lens = _known(kv_lens_S, num_rows)
    borders, table = _known(cu_q_lens_S1, num_rows + 1), _known(page_table_SM, num_rows)
    most = pages_per_row * pages.page_size
    if kv_lens is not None:
        _require_all(
            (kv_lens >= 0) & (kv_lens <= most),
            "kv_lens_S",
            kv_lens,
            f"0 to {most}, what {pages_per_row} pages of {pages.page_size} hold",
        )
    if borders is not None:
        _require_all(
            (borders >= 0) & (borders <= num_tokens) & (np.diff(borders, prepend=0) >= 0),
            "cu_q_lens_S1",
            borders,
            f"rising, from 0 to {num_tokens} tokens",
        )
    if kv_lens is None:  # Then any row may be idle, and have any tokens and pages.
        return
    is_active = kv_lens > 0
    if borders is not None:
        new = np.diff(borders)
        is_single = ~is_active[:num_decode] | (new[:num_decode] == 1)
        name = "new tokens of decode row cu_q_lens_S1"
        _require_all(is_single, name, new[:num_decode], "1, as distribution_3 says")
        fits = ~is_active | (new <= kv_lens)
        _require_all(fits, "new tokens of cu_q_lens_S1", new, "no more than kv_lens_S counts")
    if table is not None:
        is_page = (table >= 0) & (table < pages.num_pages) | ~is_active[:, None]
        _require_all(is_page, "page_table_SM", table, f"0 (none) to {pages.num_pages - 1}")


def _known(x: jax.Array | np.ndarray, count: int | None = None) -> np.ndarray | None:
    """The first ``count`` of ``x``, or None where the numbers come when the program runs."""
    return None if isinstance(x, jax.core.Tracer) else np.asarray(x)[:count]


def _require_all(is_allowed: np.ndarray, name: str, values: np.ndarray, allowed: str) -> None:
    if not is_allowed.all():
        place = tuple(np.argwhere(~is_allowed)[0].tolist())
        require(False, f"{name}{list(place)}", int(values[place]), allowed)
