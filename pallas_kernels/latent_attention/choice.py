"""Which implementation serves pages of a kind, and calls on them."""

from dataclasses import dataclass

import jax

from pallas_kernels import dispatch
from pallas_kernels.latent_attention import gpu_limits, tpu_pages
from pallas_kernels.latent_attention.gpu_pages import GpuLatentPages
from pallas_kernels.latent_attention.pages import LatentPages as PlainLatentPages
from pallas_kernels.latent_attention.tpu_pages import TpuLatentPages
from pallas_kernels.paging.options import Options
from pallas_kernels.paging.pool import XLA_PAGE_SIZES

LatentPages = PlainLatentPages | TpuLatentPages | GpuLatentPages
"""The pages of one layer: an opaque pytree, whose layout is that of an implementation."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Pages that are to be made, or a call on pages which exist in ``layout``."""

    page_size: int
    latent_rank: int
    rope_dim: int
    dtype: jax.typing.DTypeLike
    layout: type | None = None
    num_heads: int | None = None
    is_unwritten: bool = False
    """New latents take part but are not written."""

    @staticmethod
    def by_call(
        latent_pages: LatentPages, q_latent_TNR: jax.Array, *, has_new: bool, options: Options
    ) -> "Wanted":
        return Wanted(
            page_size=latent_pages.page_size,
            latent_rank=latent_pages.latent_rank,
            rope_dim=latent_pages.rope_dim,
            dtype=latent_pages.dtype,
            layout=type(latent_pages),
            num_heads=q_latent_TNR.shape[1],
            is_unwritten=has_new and not options.update_kv_cache,
        )


def page_sizes(latent_rank: int, rope_dim: int, dtype: jax.typing.DTypeLike) -> tuple[int, ...]:
    """The page sizes that the best implementation for the chip takes, ascending.

    The chip and ``dtype``: as for ``ragged_paged_attention.page_sizes``.
    """
    takers: dict[str, list[int]] = {}
    for size in XLA_PAGE_SIZES:
        wanted = Wanted(page_size=size, latent_rank=latent_rank, rope_dim=rope_dim, dtype=dtype)
        takers.setdefault(choose(wanted, None, tells=False), []).append(size)
    return tuple(takers[min(takers, key=dispatch.NAMES.index)])


def choose(wanted: Wanted, implementation: str | None, *, tells: bool = True) -> str:
    """The name of the implementation; errors as those of ``dispatch.choose``, and what it logs with
    ``tells``."""
    kind = (wanted.page_size, wanted.latent_rank, wanted.rope_dim, wanted.dtype)
    # A name is taken at its word: what is compiled ahead of time may be for other machines.
    # Pages that exist were made for the chip they are on.
    chip = None if implementation or wanted.layout else dispatch.chip()

    def foreign(layout: type) -> str | None:
        if wanted.layout in (None, layout):
            return None
        name = LAYOUTS[wanted.layout]
        return f"the pages have the layout of {name}: name the implementation when they are made"

    def tpu() -> str | None:
        if chip and (elsewhere := chip.refuse("tpu")):
            return elsewhere
        return (
            foreign(TpuLatentPages)
            or tpu_pages.refuse_pages(*kind)
            or tpu_pages.refuse_call(wanted.num_heads)
        )

    def gpu() -> str | None:
        if chip and (elsewhere := chip.refuse("gpu")):
            return elsewhere
        return foreign(GpuLatentPages) or gpu_limits.refuse_pages(*kind)

    def plain() -> str | None:
        return foreign(PlainLatentPages)

    refusals = {"tpu": tpu, "gpu": gpu, "xla": plain, "reference": plain}
    told = chip if tells else None
    return dispatch.choose("latent_attention", refusals, implementation, told)


LAYOUTS: dict[type, str] = {
    PlainLatentPages: "xla",
    TpuLatentPages: "tpu",
    GpuLatentPages: "gpu",
}
