"""Multi-head latent attention (arXiv 2405.04434) in two forms that give the same numbers.

Absorbed: queries go into the space of the latents, all heads attend to the latents themselves, and
what comes out leaves that space again. A position costs a head ``2 R + r`` products and the cache
holds ``R + r`` numbers: the form for decoding, and for few new tokens behind a past.

Expanded: keys and values of every head are made of the latents first. Then a position costs ``h + r
+ v`` products, a third of the above, but making them costs ``R * (h + v)``: worth it where every
position is seen by many queries of the same step, so in the prompts of a long prefill. They are
made a block at a time, so memory does not grow with a row's length. On a GPU there is none: its
blocks come in loops, at each turn of which the host would wait for the device.

h numbers of a head's query are for what is made of the latent and r are rotated; v are its value's.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from jaxinfer.batch import Ragged
from jaxinfer.cache import head_axes
from jaxinfer.config import LatentSpec
from jaxinfer.ops.chunk import attend_in_chunk
from jaxinfer.ops.heads import per_head
from pallas_kernels import (
    LatentPages,
    gather_latent_pages,
    latent_attention,
    latent_pages_spec,
    write_latents,
)
from sharding import platform_of

EXPANDED_FROM = 256
"""Tokens of a step from which on rows may take the expanded form. Below, what they gain is less
than what a second form costs to compile, and to run where rows of the other form stand beside."""

BLOCK = 128
"""Positions whose keys and values are made at once; a whole page at least."""


class Heads(NamedTuple):
    """What one step has for each head: queries ``[T, N, h]`` and ``[T, N, r]``, and the matrices
    ``[N, h, R]`` and ``[N, R, v]`` that make keys and values of latents."""

    q_nope_TNh: jax.Array
    q_rope_TNr: jax.Array
    k_up_NhR: jax.Array
    v_up_NRv: jax.Array


class Rows(NamedTuple):
    """The rows of a step as the kernel takes them; a distribution that is fixed is of NumPy."""

    kv_lens_S: jax.Array
    page_table_SM: jax.Array
    cu_q_lens_S1: jax.Array
    distribution_3: jax.Array | np.ndarray


def attend_latents(
    spec: LatentSpec,
    heads: Heads,
    latent_TR: jax.Array,
    rope_Tr: jax.Array,
    pages: LatentPages,
    page_table_SM: jax.Array,
    ragged: Ragged,
    *,
    mesh: Mesh,
    implementation: str | None = None,
) -> tuple[jax.Array, LatentPages]:
    """Writes the new latents into their pages and attends over each row's whole past.

    Heads are split over the mesh axis that the rules give to ``heads``; latents, tokens, rows and
    pages are whole on every device. Returns ``(out_TNv, pages)``; zero for tokens of idle rows.
    """
    may_expand = platform_of(mesh) != "gpu"
    kernel = functools.partial(
        _attend, spec.softmax_scale, implementation, may_expand, ragged.fixed_distribution
    )
    rows: tuple[jax.Array, ...] = (ragged.kv_lens_S, page_table_SM, ragged.cu_q_lens_S1)
    if ragged.fixed_distribution is None:
        assert ragged.distribution_3 is not None
        rows = (*rows, ragged.distribution_3)
    with jax.named_scope("latent"):
        if mesh.size == 1:
            return kernel(heads, latent_TR, rope_Tr, pages, *rows)
        axes = head_axes(spec, mesh)
        queries, matrices = PartitionSpec(None, axes), PartitionSpec(axes)
        whole, pool = PartitionSpec(), latent_pages_spec(axes)
        where: Any = Heads(queries, queries, matrices, matrices)  # type: ignore[arg-type]
        sharded = jax.shard_map(
            kernel,
            mesh=mesh,
            in_specs=(where, whole, whole, pool, *(whole for _ in rows)),
            out_specs=(queries, pool),
            check_vma=False,
        )
        return sharded(heads, latent_TR, rope_Tr, pages, *rows)


def _attend(
    scale: float,
    implementation: str | None,
    may_expand: bool,
    fixed_distribution: tuple[int, int, int] | None,
    heads: Heads,
    latent_TR: jax.Array,
    rope_Tr: jax.Array,
    pages: LatentPages,
    *rows: jax.Array,
) -> tuple[jax.Array, LatentPages]:
    """On one device: some of the heads. Each row takes its form by itself, whatever its neighbours
    are, so that its numbers do not depend on them."""
    known = () if fixed_distribution is None else (np.asarray(fixed_distribution, np.int32),)
    all_rows = Rows(*rows, *known)
    new = (latent_TR, rope_Tr)
    if not may_expand or not _has_long_rows(latent_TR.shape[0], all_rows.distribution_3):
        return _absorbed(scale, implementation, heads, new, pages, all_rows)
    q_lens_S = jnp.diff(all_rows.cu_q_lens_S1)
    is_expanded_S = all_rows.kv_lens_S == q_lens_S
    pays_from = expansion_pays_from(heads)
    if pays_from is not None:
        is_expanded_S |= q_lens_S >= pays_from
    absorbed, expanded = (
        all_rows._replace(kv_lens_S=jnp.where(is_one_S, all_rows.kv_lens_S, 0))
        for is_one_S in (~is_expanded_S, is_expanded_S)
    )
    # Written apart: a conditional that changed the pages would copy them.
    pages = write_latents(*new, pages, **all_rows._asdict())
    out_TNv = _where_any(
        absorbed,
        lambda: _absorbed(scale, implementation, heads, (None, None), pages, absorbed)[0],
    )
    return out_TNv + _where_any(expanded, lambda: _expanded(scale, heads, pages, expanded)), pages


def expansion_pays_from(heads: Heads) -> int | None:
    """New tokens of a row from which on the expanded form has fewer products, however long its
    past is; None: never. A row without a past has nothing else to expand but what it attends to."""
    (_, nope_dim, rank), (_, _, value_dim) = heads.k_up_NhR.shape, heads.v_up_NRv.shape
    saved_of_a_pair = 2 * rank - nope_dim - value_dim
    if saved_of_a_pair <= 0:
        return None
    return -(-rank * (nope_dim + value_dim) // saved_of_a_pair)


def _where_any(rows: Rows, attend: Callable[[], jax.Array]) -> jax.Array:
    """What ``attend`` gives; zeros, and no waiting for it, in a step that has no such rows."""
    result = jax.eval_shape(attend)
    return lax.cond(
        (rows.kv_lens_S > 0).any(), attend, lambda: jnp.zeros(result.shape, result.dtype)
    )


def _has_long_rows(num_tokens: int, distribution_3: jax.Array | np.ndarray) -> bool:
    """Whether the program is one for long prefills, as far as is known when it is traced."""
    if num_tokens < EXPANDED_FROM:
        return False
    if isinstance(distribution_3, np.ndarray):
        return bool(distribution_3[0] < distribution_3[2])
    return True


def _absorbed(
    scale: float,
    implementation: str | None,
    heads: Heads,
    new: tuple[jax.Array | None, jax.Array | None],
    pages: LatentPages,
    rows: Rows,
) -> tuple[jax.Array, LatentPages]:
    dtype = heads.q_nope_TNh.dtype
    latent_TR, rope_Tr = new
    q_latent_TNR = per_head("TNh,NhR->TNR", heads.q_nope_TNh, heads.k_up_NhR).astype(dtype)
    out_TNR, pages = latent_attention(
        q_latent_TNR,
        heads.q_rope_TNr,
        latent_TR,
        rope_Tr,
        pages,
        **rows._asdict(),
        scale=scale,
        implementation=implementation,
    )
    return per_head("TNR,NRv->TNv", out_TNR, heads.v_up_NRv).astype(dtype), pages


def _expanded(scale: float, heads: Heads, pages: LatentPages, rows: Rows) -> jax.Array:
    """Of latents that are in their pages, new ones too."""
    dtype = heads.q_nope_TNh.dtype
    num_tokens, num_heads, _ = heads.q_nope_TNh.shape
    is_row_S = jnp.arange(rows.kv_lens_S.size, dtype=jnp.int32) < rows.distribution_3[2]
    fits_S = rows.cu_q_lens_S1[1:] <= num_tokens
    is_row_S &= fits_S & (rows.kv_lens_S > 0)
    pages_per_block = max(1, BLOCK // pages.page_size)
    size = pages_per_block * pages.page_size
    # A slice is never beyond the end of what it is cut from.
    page_table_SM = jnp.pad(rows.page_table_SM, ((0, 0), (0, pages_per_block)))

    def block_of(row: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array]:
        column = lax.div(first, jnp.int32(pages.page_size))
        ids_1n = lax.dynamic_slice(page_table_SM, (row, column), (1, pages_per_block))
        latent_npR, rope_npr = gather_latent_pages(pages, ids_1n[0])
        # Memory that nobody wrote may be NaN.
        is_held_c1 = (first + jnp.arange(size, dtype=jnp.int32) < rows.kv_lens_S[row])[:, None]
        latent_cR, rope_cr = (
            jnp.where(is_held_c1, x.reshape(size, -1).astype(dtype), jnp.zeros((), dtype))
            for x in (latent_npR, rope_npr)
        )
        k_Nch = per_head("cR,NhR->Nch", latent_cR, heads.k_up_NhR).astype(dtype)
        v_Ncv = per_head("cR,NRv->Ncv", latent_cR, heads.v_up_NRv).astype(dtype)
        rope_Ncr = jnp.broadcast_to(rope_cr, (num_heads, *rope_cr.shape))
        return jnp.concatenate([k_Nch, rope_Ncr], axis=-1), v_Ncv

    q_TNH = jnp.concatenate([heads.q_nope_TNh, heads.q_rope_TNr], axis=-1)
    return attend_in_chunk(
        q_TNH.swapaxes(0, 1),
        block_of,
        rows.cu_q_lens_S1[:-1],
        jnp.where(is_row_S, jnp.diff(rows.cu_q_lens_S1), 0),
        rows.kv_lens_S,
        scale=scale,
    )
