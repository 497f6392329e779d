"""Attention over a ragged batch whose keys and values live in pages, with their write in the same
call.

``ragged_paged_attention`` follows PagedAttention (arXiv 2309.06180) and the calling convention of
Ragged Paged Attention (arXiv 2604.15464). The pages are a pytree to be carried, donated and handed
back; its layout is nobody else's business.
"""

import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.ragged_paged_attention import gpu_limits
from pallas_kernels.ragged_paged_attention.gpu_pages import GPUPages, allocate_gpu_pages
from pallas_kernels.ragged_paged_attention.options import Options
from pallas_kernels.ragged_paged_attention.pages import (
    AnyPages,
    KVPages,
    allocate_kv_pages,
    copy_kv_pages,
    fill_kv_pages,
    gather_kv_pages,
    kv_pages_spec,
    scatter_kv_pages,
)

__all__ = [
    "GPUPages",
    "KVPages",
    "copy_kv_pages",
    "fill_kv_pages",
    "gather_kv_pages",
    "init_kv_pages",
    "kv_pages_spec",
    "ragged_paged_attention",
    "scatter_kv_pages",
]

QUERY_DTYPES = ("float32", "bfloat16", "float16")
XLA_PAGE_SIZES = (8, 16, 32, 64, 128, 256)


def init_kv_pages(
    num_pages: int,
    page_size: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: jax.typing.DTypeLike,
    implementation: str | None = None,
) -> Any:
    """A pool of ``num_pages`` pages of ``page_size`` positions for one layer, filled with zeros.

    ``dtype``: float32, bfloat16, float16, float8_e4m3fn, float8_e5m2 or int8. Page 0 exists but is
    never owned: a pool of ``num_pages`` serves ``num_pages - 1`` pages. ``implementation`` chooses
    the layout, by the rule of ``ragged_paged_attention``: ``KVPages``, or ``GPUPages`` for ``gpu``.

    Raises ``ValueError`` for a size below 1 or another dtype, and ``NoImplementation``.
    """
    pages = allocate_kv_pages(num_pages, page_size, num_kv_heads, head_dim, dtype)
    refusals = {
        "gpu": lambda: _gpu_refusal(page_size, head_dim, pages.dtype_name, implementation),
        **_refusals(page_size),
    }
    if dispatch.choose("ragged_paged_attention", refusals, implementation) == "gpu":
        return allocate_gpu_pages(num_pages, page_size, num_kv_heads, head_dim, dtype)
    return pages


def ragged_paged_attention(
    q_TNH: jax.Array,
    k_TKH: jax.Array | None,
    v_TKH: jax.Array | None,
    kv_pages: AnyPages,
    kv_lens_S: jax.Array,
    page_table_SM: jax.Array,
    cu_q_lens_S1: jax.Array,
    distribution_3: jax.Array,
    *,
    scale: float,
    causal: bool = True,
    sliding_window: int | None = None,
    logit_softcap: float | None = None,
    sinks_N: jax.Array | None = None,
    k_scale_K: jax.Array | None = None,
    v_scale_K: jax.Array | None = None,
    update_kv_cache: bool = True,
    implementation: str | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, AnyPages]:
    """Writes the new keys and values into their pages and attends; returns ``(out_TNH, kv_pages)``.

    Donate ``kv_pages`` and go on with the returned one: the write is in place.

    Arrays (all integers int32):

    - ``q_TNH`` float32, bfloat16 or float16: T tokens of all rows laid end to end, N query heads
      that share K kv heads in runs of N / K.
    - ``k_TKH``, ``v_TKH``: the new keys and values, any float dtype; both None to read only what
      the pages hold (then ``kv_lens_S`` still counts the present tokens, whose owner wrote them).
    - ``kv_lens_S``: length of each row after this step, cached plus new. 0: the row is idle.
    - ``page_table_SM``: entry ``[s, m]`` is the page of positions ``m * page_size ...`` of row s,
      or 0 where no page is in use (beyond the length, or before the window).
    - ``cu_q_lens_S1``: row s owns tokens ``cu_q_lens[s]`` to ``cu_q_lens[s + 1]``; its last token
      has position ``kv_lens[s] - 1``.
    - ``distribution_3``: ends of the decode rows (one token each), of the pure-prefill rows
      (nothing cached), of all rows. The first two are hints for speed and never change a result.
    - ``sinks_N``: an extra logit per query head that joins the softmax denominator only.
    - ``k_scale_K``, ``v_scale_K``: a page holds ``value / scale``; int8 pages need both.

    ``out_TNH`` has the dtype of ``q_TNH`` and is zero for tokens of idle rows and for padding
    (tokens beyond the last border, rows beyond ``distribution[2]``), which is never read and may be
    NaN. So may all memory that no row has written. A position whose table entry is not in 1..P-1 is
    not written and not seen; a row whose numbers contradict each other (more new tokens than its
    length, longer than its table) is idle. No such mistake reaches another row's pages.

    Options: ``scale`` multiplies the logits; ``causal=False`` lets every new token see its whole
    row; ``sliding_window=w`` lets position i see no position before ``i - w + 1``;
    ``logit_softcap=c`` makes logits ``c * tanh(logits / c)``; ``update_kv_cache=False`` lets the
    new keys and values take part, rounded as if written, and leaves the pages as they were.

    ``implementation``: None for the first that can of ``dispatch.NAMES``, or one of them.
    ``interpret`` runs a Pallas kernel in its interpreter; the others ignore it.

    Raises ``ValueError`` for shapes, dtypes and options that contradict this, and
    ``NoImplementation`` when no implementation (or not the named one) can run the call.
    """
    options = Options(
        scale=scale,
        causal=causal,
        sliding_window=sliding_window,
        logit_softcap=logit_softcap,
        update_kv_cache=update_kv_cache,
    )
    _check_heads(q_TNH, k_TKH, v_TKH, kv_pages)
    _check_scales(kv_pages, sinks_N, k_scale_K, v_scale_K, num_heads=q_TNH.shape[1])
    _check_rows(kv_lens_S, page_table_SM, cu_q_lens_S1, distribution_3)
    is_unwritten = k_TKH is not None and not update_kv_cache
    chosen = _choose(kv_pages, q_TNH.shape[1], implementation, is_unwritten=is_unwritten)
    module = importlib.import_module(f"{__name__}.{chosen}")
    run = functools.partial(module.ragged_paged_attention, interpret=True)
    run = run if interpret and chosen == "gpu" else module.ragged_paged_attention
    with jax.named_scope("ragged_paged_attention"):
        return run(
            q_TNH,
            k_TKH,
            v_TKH,
            kv_pages,
            kv_lens_S,
            page_table_SM,
            cu_q_lens_S1,
            distribution_3,
            sinks_N,
            k_scale_K,
            v_scale_K,
            options,
        )


def _choose(
    kv_pages: KVPages | GPUPages,
    num_heads: int,
    implementation: str | None,
    *,
    is_unwritten: bool,
) -> str:
    """The implementation of a call: one that can, and whose pages these are."""

    def gpu() -> str | None:
        if not isinstance(kv_pages, GPUPages):
            return "the pages have the layout of another implementation"
        return _gpu_refusal(
            kv_pages.page_size, kv_pages.head_dim, kv_pages.dtype_name, implementation
        ) or gpu_limits.refusal_of_call(num_heads, kv_pages.num_kv_heads, is_unwritten=is_unwritten)

    def of_gpu() -> str | None:
        return "the pages have the layout of gpu" if isinstance(kv_pages, GPUPages) else None

    others = {
        name: lambda refusal=refusal: of_gpu() or refusal()
        for name, refusal in _refusals(kv_pages.page_size).items()
    }
    return dispatch.choose("ragged_paged_attention", {"gpu": gpu, **others}, implementation)


def _refusals(page_size: int) -> dict[str, dispatch.Refusal]:
    def xla() -> str | None:
        if page_size in XLA_PAGE_SIZES:
            return None
        return f"page_size = {page_size} is not one of {', '.join(map(str, XLA_PAGE_SIZES))}"

    return {"xla": xla, "reference": lambda: None}


def _gpu_refusal(
    page_size: int, head_dim: int, dtype_name: str, implementation: str | None
) -> str | None:
    """Unless it is named (to compile for a chip that is not here, or to interpret), the kernel for
    Hopper is for programs that run on one."""
    if implementation is None:
        if jax.default_backend() != "gpu":
            return f"the backend is {jax.default_backend()}"
        capability = getattr(jax.devices()[0], "compute_capability", "unknown")
        if capability != "9.0":
            return f"compute capability {capability} is not 9.0 (Hopper)"
    return gpu_limits.refusal_of_pages(page_size, head_dim, dtype_name)


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise ValueError(f"{name} = {value} is not allowed: it must be {allowed}")


def _check_heads(
    q_TNH: jax.Array, k_TKH: jax.Array | None, v_TKH: jax.Array | None, kv_pages: KVPages | GPUPages
) -> None:
    kv_heads, head_dim = kv_pages.num_kv_heads, kv_pages.head_dim
    _require(q_TNH.ndim == 3 and 0 not in q_TNH.shape, "shape of q_TNH", q_TNH.shape, "[T, N, H]")
    num_tokens, num_heads, _ = q_TNH.shape
    _require(
        q_TNH.dtype.name in QUERY_DTYPES, "dtype of q_TNH", q_TNH.dtype, " or ".join(QUERY_DTYPES)
    )
    _require(
        q_TNH.shape[2] == head_dim, "head dim of q_TNH", q_TNH.shape[2], f"{head_dim}, as paged"
    )
    _require(
        num_heads % kv_heads == 0,
        "number of query heads",
        num_heads,
        f"a multiple of the {kv_heads} kv heads",
    )
    if k_TKH is None or v_TKH is None:
        _require(k_TKH is v_TKH, "one of k_TKH and v_TKH", None, "None together with the other")
        return
    for name, x in (("k_TKH", k_TKH), ("v_TKH", v_TKH)):
        shape = (num_tokens, kv_heads, head_dim)
        _require(x.shape == shape, f"shape of {name}", x.shape, f"[T, K, H] = {shape}")
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        _require(is_float, f"dtype of {name}", x.dtype, "a float dtype")


def _check_scales(
    kv_pages: KVPages | GPUPages,
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
        _require(x.shape == (size,), f"shape of {name}", x.shape, f"({size},)")
        is_float = jnp.issubdtype(x.dtype, jnp.floating)
        _require(is_float, f"dtype of {name}", x.dtype, "a float dtype")
    if kv_pages.dtype == jnp.int8:
        for name, x in (("k_scale_K", k_scale_K), ("v_scale_K", v_scale_K)):
            _require(x is not None, name, None, "given for int8 pages")


def _check_rows(
    kv_lens_S: jax.Array,
    page_table_SM: jax.Array,
    cu_q_lens_S1: jax.Array,
    distribution_3: jax.Array,
) -> None:
    is_table = page_table_SM.ndim == 2 and 0 not in page_table_SM.shape
    _require(is_table, "shape of page_table_SM", page_table_SM.shape, "[S, M]")
    slots = page_table_SM.shape[0]
    for name, x, shape in (
        ("kv_lens_S", kv_lens_S, (slots,)),
        ("page_table_SM", page_table_SM, page_table_SM.shape),
        ("cu_q_lens_S1", cu_q_lens_S1, (slots + 1,)),
        ("distribution_3", distribution_3, (3,)),
    ):
        _require(x.shape == shape, f"shape of {name}", x.shape, f"{shape}")
        _require(x.dtype == jnp.int32, f"dtype of {name}", x.dtype, "int32")
