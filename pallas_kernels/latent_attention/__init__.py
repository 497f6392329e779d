"""Multi-head latent attention over a ragged batch whose latents live in pages, with their write in
the same call.

``latent_attention`` is the absorbed form of DeepSeek-V2 (arXiv 2405.04434, section 2.1): queries
come already multiplied into the latent space, all query heads share one latent a position, and what
comes out is still latent. It is the twin of ``ragged_paged_attention`` and follows its rules; a
position's key is its latent joined with a small rotary part, its value is the latent alone.
"""

import importlib
from collections.abc import Callable

import jax

from pallas_kernels import dispatch
from pallas_kernels.latent_attention.arguments import check_arguments
from pallas_kernels.latent_attention.choice import LatentPages, Wanted, choose, page_sizes
from pallas_kernels.latent_attention.gpu_pages import allocate_gpu_latent_pages
from pallas_kernels.latent_attention.pages import (
    allocate_latent_pages,
    check_pool,
    copy_latent_pages,
    fill_latent_pages,
    gather_latent_pages,
    latent_pages_spec,
    scatter_latent_pages,
)
from pallas_kernels.latent_attention.tpu_pages import allocate_tpu_latent_pages
from pallas_kernels.latent_attention.write import write_latents
from pallas_kernels.paging.arguments import check_row_values
from pallas_kernels.paging.options import Options

__all__ = [
    "LatentPages",
    "copy_latent_pages",
    "fill_latent_pages",
    "gather_latent_pages",
    "init_latent_pages",
    "latent_attention",
    "latent_pages_spec",
    "page_sizes",
    "scatter_latent_pages",
    "write_latents",
]

ALLOCATE: dict[str, Callable[..., LatentPages]] = {
    "tpu": allocate_tpu_latent_pages,
    "gpu": allocate_gpu_latent_pages,
}
"""Who has a layout of its own."""


def init_latent_pages(
    num_pages: int,
    page_size: int,
    latent_rank: int,
    rope_dim: int,
    dtype: jax.typing.DTypeLike,
    implementation: str | None = None,
) -> LatentPages:
    """A pool of ``num_pages`` pages of ``page_size`` positions for one layer, filled with zeros.

    A position holds a latent of ``latent_rank`` numbers and a rotary part of ``rope_dim``.
    ``dtype``: float32, bfloat16, float16, float8_e4m3fn or float8_e5m2. Page 0 exists but is never
    owned: a pool of ``num_pages`` serves ``num_pages - 1`` pages. ``implementation`` chooses the
    layout, by the rule of ``latent_attention``.

    Raises ``ValueError`` for a size below 1 or another dtype, and ``NoImplementation``.
    """
    check_pool(num_pages, page_size, latent_rank, rope_dim, dtype)
    wanted = Wanted(page_size=page_size, latent_rank=latent_rank, rope_dim=rope_dim, dtype=dtype)
    allocate = ALLOCATE.get(choose(wanted, implementation), allocate_latent_pages)
    return allocate(num_pages, page_size, latent_rank, rope_dim, dtype)


def latent_attention(
    q_latent_TNR: jax.Array,
    q_rope_TNr: jax.Array,
    latent_TR: jax.Array | None,
    rope_Tr: jax.Array | None,
    latent_pages: LatentPages,
    kv_lens_S: jax.Array,
    page_table_SM: jax.Array,
    cu_q_lens_S1: jax.Array,
    distribution_3: jax.Array,
    *,
    scale: float,
    causal: bool = True,
    update_kv_cache: bool = True,
    implementation: str | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, LatentPages]:
    """Writes the new latents into their pages and attends; returns ``(out_latent_TNR, pages)``.

    ``logits = (q_latent . latent + q_rope . rope) * scale``, and the result is the average of the
    latents by the softmax of these. Donate ``latent_pages`` and go on with the returned ones: the
    write is in place.

    Arrays (all integers int32):

    - ``q_latent_TNR``, ``q_rope_TNr`` float32, bfloat16 or float16, both the same: T tokens of all
      rows laid end to end, N query heads; R is the latent rank, r the rotary part.
    - ``latent_TR``, ``rope_Tr``: the new latents and rotary parts, any float dtype; both None to
      read only what the pages hold (then ``kv_lens_S`` still counts the present tokens, whose owner
      wrote them).
    - ``kv_lens_S``: length of each row after this step, cached plus new. 0: the row is idle.
    - ``page_table_SM``: entry ``[s, m]`` is the page of positions ``m * page_size ...`` of row s,
      or 0 where no page is in use.
    - ``cu_q_lens_S1``: row s owns tokens ``cu_q_lens[s]`` to ``cu_q_lens[s + 1]``; its last token
      has position ``kv_lens[s] - 1``.
    - ``distribution_3``: ends of the decode rows (one token each), of the pure-prefill rows
      (nothing cached), of all rows. The first two are hints for speed and never change a result.

    ``out_latent_TNR`` has the dtype of the queries and is zero for tokens of idle rows and for
    padding (tokens beyond the last border, rows beyond ``distribution[2]``), which is never read
    and may be NaN. So may all memory that no row has written. A position whose table entry is not
    in 1..P-1 is not written and not seen; a row whose numbers contradict each other (more new
    tokens than its length, longer than its table, beginning before another has ended) is idle. No
    such mistake reaches another row's pages.

    Options: ``scale`` multiplies the logits; ``causal=False`` lets every new token see its whole
    row; ``update_kv_cache=False`` lets the new latents take part, rounded as if written, and leaves
    the pages as they were.

    ``implementation`` and ``interpret``: as in ``ragged_paged_attention``.

    Raises ``ValueError`` for shapes, dtypes and options that contradict this, and
    ``NoImplementation`` when no implementation (or not the named one) can run the call.
    """
    options = Options(scale=scale, causal=causal, update_kv_cache=update_kv_cache)
    check_arguments(
        q_latent_TNR,
        q_rope_TNr,
        latent_TR,
        rope_Tr,
        latent_pages,
        kv_lens_S,
        page_table_SM,
        cu_q_lens_S1,
        distribution_3,
    )
    wanted = Wanted.by_call(
        latent_pages, q_latent_TNR, has_new=latent_TR is not None, options=options
    )
    chosen = choose(wanted, implementation)
    rows = (kv_lens_S, page_table_SM, cu_q_lens_S1, distribution_3)
    check_row_values(q_latent_TNR.shape[0], latent_pages, *rows)
    dispatch.refuse_to_run(
        "latent_attention", chosen, interpret, (q_latent_TNR, latent_pages, *rows)
    )
    module = importlib.import_module(f"{__name__}.{chosen}")
    interpreted = {"interpret": interpret} if chosen in ALLOCATE else {}
    with jax.named_scope("latent_attention"):
        return module.latent_attention(
            q_latent_TNR,
            q_rope_TNr,
            latent_TR,
            rope_Tr,
            latent_pages,
            *rows,
            options,
            **interpreted,
        )
