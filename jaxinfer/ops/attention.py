"""Attention over paged keys and values: one kernel call, on every device of the mesh."""

import functools

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxinfer.batch import Ragged
from jaxinfer.cache import head_axes
from jaxinfer.config import AttentionSpec
from jaxinfer.ops.attention_chunks import rows_of_chunks
from pallas_kernels import KVPages, kv_pages_spec, ragged_paged_attention


def attend(
    spec: AttentionSpec,
    q_TNH: jax.Array,
    k_TKH: jax.Array | None,
    v_TKH: jax.Array | None,
    pages: KVPages,
    page_table_SM: jax.Array,
    ragged: Ragged,
    *,
    sinks_N: jax.Array | None = None,
    mesh: Mesh,
    implementation: str | None = None,
) -> tuple[jax.Array, KVPages]:
    """Writes the new keys and values into their pages and attends over each row's whole past.

    Without new ones (both None) the pages hold them already: another layer wrote them.
    Heads are split over the mesh axis that the rules give to ``heads``; tokens, rows and pages are
    whole on every device. ``sinks_N``: float32, where the spec has ``sinks``. Returns
    ``(out_TNH, pages)``.
    """
    if spec.chunk is not None and spec.chunk < page_table_SM.shape[1] * pages.page_size:
        page_table_SM, ragged = rows_of_chunks(
            spec.chunk, pages.page_size, q_TNH.shape[0], page_table_SM, ragged
        )
    kernel = functools.partial(
        ragged_paged_attention,
        scale=spec.softmax_scale,
        sliding_window=spec.window,
        logit_softcap=spec.softcap,
        implementation=implementation,
    )
    assert (sinks_N is not None) == spec.sinks
    rows: tuple[jax.Array, ...] = (ragged.kv_lens_S, page_table_SM, ragged.cu_q_lens_S1)
    if ragged.fixed_distribution is None:
        assert ragged.distribution_3 is not None
        rows = (*rows, ragged.distribution_3)
    else:
        distribution_3 = np.asarray(ragged.fixed_distribution, np.int32)
        kernel = functools.partial(kernel, distribution_3=distribution_3)
    with jax.named_scope("attention"):
        if mesh.size == 1:
            return kernel(q_TNH, k_TKH, v_TKH, pages, *rows, sinks_N=sinks_N)
        axes = head_axes(spec, mesh)
        heads = PartitionSpec(None, axes)
        pool = kv_pages_spec(axes)
        whole = PartitionSpec()
        sharded = jax.shard_map(
            lambda sinks_N, *args: kernel(*args, sinks_N=sinks_N),
            mesh=mesh,
            in_specs=(PartitionSpec(axes), heads, heads, heads, pool, *(whole for _ in rows)),
            out_specs=(heads, pool),
            check_vma=False,
        )
        return sharded(sinks_N, q_TNH, k_TKH, v_TKH, pages, *rows)
