"""Which implementation serves pages of a kind, and calls on them."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from pallas_kernels import dispatch
from pallas_kernels.paging.pool import XLA_PAGE_SIZES
from pallas_kernels.ragged_paged_attention import gpu_limits, tpu_pages
from pallas_kernels.ragged_paged_attention.gpu_pages import GpuKVPages
from pallas_kernels.ragged_paged_attention.pages import KVPages as PlainKVPages
from pallas_kernels.ragged_paged_attention.tpu_pages import TpuKVPages

KVPages = PlainKVPages | TpuKVPages | GpuKVPages
"""The pages of one layer: an opaque pytree, whose layout is that of an implementation."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Pages that are to be made, or a call on pages which exist in ``layout``."""

    page_size: int
    head_dim: int
    dtype: jax.typing.DTypeLike
    layout: type | None = None

    @staticmethod
    def by_call(kv_pages: KVPages) -> "Wanted":
        return Wanted(
            page_size=kv_pages.page_size,
            head_dim=kv_pages.head_dim,
            dtype=kv_pages.dtype,
            layout=type(kv_pages),
        )


def page_sizes(head_dim: int, dtype: jax.typing.DTypeLike) -> tuple[int, ...]:
    """The page sizes that the best implementation for the chip takes, ascending.

    The chip is that of the mesh which is set, else of JAX's default backend; ``dtype`` is that of
    the pages. Other sizes of ``XLA_PAGE_SIZES`` work, and are served by a slower implementation.
    """
    takers: dict[str, list[int]] = {}
    for size in XLA_PAGE_SIZES:
        wanted = Wanted(page_size=size, head_dim=head_dim, dtype=dtype)
        takers.setdefault(choose(wanted, None, tells=False), []).append(size)
    return tuple(takers[min(takers, key=dispatch.NAMES.index)])


def choose(wanted: Wanted, implementation: str | None, *, tells: bool = True) -> str:
    """The name of the implementation; errors as those of ``dispatch.choose``, and its warning if it
    ``tells``."""
    kind = (wanted.page_size, wanted.head_dim, jnp.dtype(wanted.dtype))
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
        return foreign(TpuKVPages) or tpu_pages.refuse_pages(*kind)

    def gpu() -> str | None:
        if chip and (elsewhere := chip.refuse("gpu")):
            return elsewhere
        return foreign(GpuKVPages) or gpu_limits.refuse_pages(*kind)

    def xla() -> str | None:
        if wanted.page_size in XLA_PAGE_SIZES:
            return foreign(PlainKVPages)
        allowed = ", ".join(map(str, XLA_PAGE_SIZES))
        return f"page_size = {wanted.page_size} is not one of {allowed}"

    def reference() -> str | None:
        return foreign(PlainKVPages)

    refusals = {"tpu": tpu, "gpu": gpu, "xla": xla, "reference": reference}
    told = chip if tells else None
    return dispatch.choose("ragged_paged_attention", refusals, implementation, told)


LAYOUTS = {PlainKVPages: "xla", TpuKVPages: "tpu", GpuKVPages: "gpu"}
