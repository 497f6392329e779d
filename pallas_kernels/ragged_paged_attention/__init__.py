"""Attention over a ragged batch whose keys and values live in pages, with their write in the same
call.

``ragged_paged_attention`` follows PagedAttention (arXiv 2309.06180) and the calling convention of
Ragged Paged Attention (arXiv 2604.15464). The pages are a pytree to be carried, donated and handed
back; its layout is nobody else's business.
"""

import importlib
from collections.abc import Callable

import jax

from pallas_kernels import dispatch
from pallas_kernels.paging.arguments import check_row_values
from pallas_kernels.paging.options import Options
from pallas_kernels.ragged_paged_attention.arguments import check_arguments
from pallas_kernels.ragged_paged_attention.choice import (
    XLA_PAGE_SIZES,
    KVPages,
    Wanted,
    choose,
    page_sizes,
)
from pallas_kernels.ragged_paged_attention.gpu_pages import allocate_gpu_kv_pages
from pallas_kernels.ragged_paged_attention.pages import (
    allocate_kv_pages,
    check_pool,
    copy_kv_pages,
    fill_kv_pages,
    gather_kv_pages,
    kv_pages_spec,
    scatter_kv_pages,
)
from pallas_kernels.ragged_paged_attention.tpu_pages import allocate_tpu_kv_pages

__all__ = [
    "XLA_PAGE_SIZES",
    "KVPages",
    "copy_kv_pages",
    "fill_kv_pages",
    "gather_kv_pages",
    "init_kv_pages",
    "kv_pages_spec",
    "page_sizes",
    "ragged_paged_attention",
    "scatter_kv_pages",
]

ALLOCATE: dict[str, Callable[..., KVPages]] = {
    "tpu": allocate_tpu_kv_pages,
    "gpu": allocate_gpu_kv_pages,
}
"""Who has a layout of its own."""


def init_kv_pages(
    num_pages: int,
    page_size: int,
    num_kv_heads: int,
    head_dim: int,
    dtype: jax.typing.DTypeLike,
    implementation: str | None = None,
) -> KVPages:
    """A pool of ``num_pages`` pages of ``page_size`` positions for one layer, filled with zeros.

    ``dtype``: float32, bfloat16, float16, float8_e4m3fn, float8_e5m2 or int8. Page 0 exists but is
    never owned: a pool of ``num_pages`` serves ``num_pages - 1`` pages. ``implementation`` chooses
    the layout, by the rule of ``ragged_paged_attention``.

    Raises ``ValueError`` for a size below 1 or another dtype, and ``NoImplementation``.
    """
    check_pool(num_pages, page_size, num_kv_heads, head_dim, dtype)
    wanted = Wanted(page_size=page_size, head_dim=head_dim, dtype=dtype)
    allocate = ALLOCATE.get(choose(wanted, implementation), allocate_kv_pages)
    return allocate(num_pages, page_size, num_kv_heads, head_dim, dtype)


def ragged_paged_attention(
    q_TNH: jax.Array,
    k_TKH: jax.Array | None,
    v_TKH: jax.Array | None,
    kv_pages: KVPages,
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
) -> tuple[jax.Array, KVPages]:
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
      (nothing cached), of all rows. The first two are hints for speed and never change a result. A
      NumPy array leaves parts of the program out: a row of several tokens among decode rows alone
      then comes out right or as zeros.
    - ``sinks_N``: an extra logit per query head that joins the softmax denominator only.
    - ``k_scale_K``, ``v_scale_K``: a page holds ``value / scale``; int8 pages need both.

    ``out_TNH`` has the dtype of ``q_TNH`` and is zero for tokens of idle rows and for padding
    (tokens beyond the last border, rows beyond ``distribution[2]``), which is never read and may be
    NaN. So may all memory that no row has written. A position whose table entry is not in 1..P-1 is
    not written and not seen; a row whose numbers contradict each other (more new tokens than its
    length, longer than its table, beginning before another has ended) is idle. No such mistake
    reaches another row's pages.

    Options: ``scale`` multiplies the logits; ``causal=False`` lets every new token see its whole
    row; ``sliding_window=w`` lets position i see no position before ``i - w + 1``;
    ``logit_softcap=c`` makes logits ``c * tanh(logits / c)``; ``update_kv_cache=False`` lets the
    new keys and values take part, rounded as if written, and leaves the pages as they were.

    ``implementation``: None for the first that can of ``dispatch.NAMES``, or one of them. Pages
    choose with it: those of the TPU and GPU kernels have layouts of their own. None takes a kernel
    where the chip is its own: that of the mesh which is set (``jax.set_mesh``), else of JAX's
    default backend. A name is taken at its word, to compile for chips that are not here (name it
    when the pages are made, too). ``interpret`` runs a Pallas kernel in its interpreter; the others
    ignore it.

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
    check_arguments(
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
    )
    chosen = choose(Wanted.by_call(kv_pages), implementation)
    rows = (kv_lens_S, page_table_SM, cu_q_lens_S1, distribution_3)
    check_row_values(q_TNH.shape[0], kv_pages, *rows)
    dispatch.refuse_to_run("ragged_paged_attention", chosen, interpret, (q_TNH, kv_pages, *rows))
    module = importlib.import_module(f"{__name__}.{chosen}")
    interpreted = {"interpret": interpret} if chosen in ALLOCATE else {}
    with jax.named_scope("ragged_paged_attention"):
        return module.ragged_paged_attention(
            q_TNH,
            k_TKH,
            v_TKH,
            kv_pages,
            *rows,
            sinks_N,
            k_scale_K,
            v_scale_K,
            options,
            **interpreted,
        )
