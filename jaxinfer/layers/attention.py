"""Softmax attention with its projections (MHA, MQA, GQA; full or sliding window)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jaxinfer.batch import Ragged
from jaxinfer.config import AttentionSpec
from jaxinfer.layers.linear import Linear, apply_each
from jaxinfer.layers.norm import Norm
from jaxinfer.layers.parameter import KeySource
from jaxinfer.ops.attention import attend
from jaxinfer.ops.rope import RopeTable, rotate
from pallas_kernels import KVPages


class Attention(nnx.Module):
    """Projects, norms and rotates queries and keys, attends over the pages, projects back."""

    def __init__(self, spec: AttentionSpec, width: int, dtype: jnp.dtype, *, rngs: KeySource):
        self.spec = spec
        q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        bias = spec.qkv_bias
        self.q = Linear(width, q_size, dtype, ("embed", "heads"), bias=bias, rngs=rngs)
        self.k = Linear(width, kv_size, dtype, ("embed", "kv_heads"), bias=bias, rngs=rngs)
        self.v = Linear(width, kv_size, dtype, ("embed", "kv_heads"), bias=bias, rngs=rngs)
        self.o = Linear(q_size, width, dtype, ("heads", "embed"), bias=spec.out_bias, rngs=rngs)

        def qk_norm(all_heads: int) -> Norm | None:
            normed = all_heads if spec.qk_norm_over == "all" else spec.head_dim
            return Norm(spec.qk_norm, normed, dtype, rngs=rngs) if spec.qk_norm else None

        self.q_norm, self.k_norm = qk_norm(q_size), qk_norm(kv_size)

    def __call__(
        self,
        x_TD: jax.Array,
        rope: RopeTable | None,
        pages: KVPages,
        page_table_SM: jax.Array,
        ragged: Ragged,
        mesh: Mesh,
    ) -> tuple[jax.Array, KVPages]:
        """Float32 ``[T, D]`` and the pages with this step's keys and values in them."""
        spec, dtype = self.spec, x_TD.dtype
        q, k, v = (y.astype(dtype) for y in apply_each((self.q, self.k, self.v), x_TD))
        q_TNH = self._heads(q, spec.num_heads, self.q_norm)
        k_TKH = self._heads(k, spec.num_kv_heads, self.k_norm)
        v_TKH = self._heads(v, spec.num_kv_heads, None)
        if spec.rope is not None:
            assert rope is not None
            q_TNH, k_TKH = rotate(spec.rope, rope, q_TNH), rotate(spec.rope, rope, k_TKH)
        out_TNH, pages = attend(spec, q_TNH, k_TKH, v_TKH, pages, page_table_SM, ragged, mesh=mesh)
        return self.o(out_TNH.reshape(x_TD.shape[0], -1)), pages

    def _heads(self, x_TX: jax.Array, num_heads: int, norm: Norm | None) -> jax.Array:
        """``[T, heads * H]`` as ``[T, heads, H]``, normalised over all heads or over each."""
        over_all = self.spec.qk_norm_over == "all"
        if norm is not None and over_all:
            x_TX = norm(x_TX)
        x_TXH = x_TX.reshape(x_TX.shape[0], num_heads, self.spec.head_dim)
        return norm(x_TXH) if norm is not None and not over_all else x_TXH
