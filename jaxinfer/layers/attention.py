"""Softmax attention with its projections (MHA, MQA, GQA; full or sliding window; shared KV)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jaxinfer.batch import Ragged
from jaxinfer.config import AttentionSpec
from jaxinfer.layers.linear import Linear, apply_each
from jaxinfer.layers.norm import Norm
from jaxinfer.layers.parameter import KeySource, logit, parameter
from jaxinfer.ops.attention import attend
from jaxinfer.ops.rope import RopeTable, rotate
from pallas_kernels import KVPages


class Attention(nnx.Module):
    """Projects, norms and rotates queries and keys, attends over the pages, projects back.

    ``owns_kv`` False: keys and values are another layer's, which wrote them in this step already.
    """

    def __init__(
        self,
        spec: AttentionSpec,
        width: int,
        dtype: jnp.dtype,
        *,
        owns_kv: bool = True,
        rngs: KeySource,
    ):
        self.spec = spec
        q_size, kv_size = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        bias = spec.qkv_bias
        self.q = Linear(width, q_size, dtype, ("embed", "heads"), bias=bias, rngs=rngs)

        def kv_projection() -> Linear:
            return Linear(width, kv_size, dtype, ("embed", "kv_heads"), bias=bias, rngs=rngs)

        self.k = kv_projection() if owns_kv else None
        self.v = kv_projection() if owns_kv and not spec.v_from_k else None
        self.o = Linear(q_size, width, dtype, ("heads", "embed"), bias=spec.out_bias, rngs=rngs)

        # A term of the softmax, which is computed in float32 whatever the model's dtype.
        self.sinks = (
            parameter(rngs, (spec.num_heads,), jnp.dtype("float32"), ("heads",), logit)
            if spec.sinks
            else None
        )

        def qk_norm(num_heads: int) -> Norm | None:
            if spec.qk_norm is None:
                return None
            width = num_heads * spec.head_dim if spec.qk_norm_over == "all" else spec.head_dim
            each = num_heads if spec.qk_norm_over == "each_head" else None
            return Norm(spec.qk_norm, width, dtype, num_heads=each, rngs=rngs)

        self.q_norm = qk_norm(spec.num_heads)
        self.k_norm = qk_norm(spec.num_kv_heads) if owns_kv else None
        self.v_norm = (
            Norm(spec.v_norm, spec.head_dim, dtype, rngs=rngs) if owns_kv and spec.v_norm else None
        )

    def __call__(
        self,
        x_TD: jax.Array,
        rope: RopeTable | None,
        query_scale_T: jax.Array | None,
        pages: KVPages,
        page_table_SM: jax.Array,
        ragged: Ragged,
        mesh: Mesh,
    ) -> tuple[jax.Array, KVPages]:
        """Float32 ``[T, D]`` and the pages with this step's keys and values in them.

        ``query_scale_T``: what the spec's ``query_temperature`` makes of the positions.
        """
        spec, dtype = self.spec, x_TD.dtype
        layers = [layer for layer in (self.q, self.k, self.v) if layer is not None]
        q, *kv = (y.astype(dtype) for y in apply_each(layers, x_TD))
        q_TNH = self._heads(q, spec.num_heads, self.q_norm, rope)
        if query_scale_T is not None:
            q_TNH = (q_TNH.astype(jnp.float32) * query_scale_T[:, None, None]).astype(dtype)
        k_TKH = v_TKH = None
        if kv:
            k, v = kv[0], kv[-1]
            k_TKH = self._heads(k, spec.num_kv_heads, self.k_norm, rope)
            v_TKH = self._clipped(v.reshape(v.shape[0], spec.num_kv_heads, spec.head_dim))
            v_TKH = v_TKH if self.v_norm is None else self.v_norm(v_TKH)
        sinks_N = None if self.sinks is None else self.sinks.get_value()
        out_TNH, pages = attend(
            spec, q_TNH, k_TKH, v_TKH, pages, page_table_SM, ragged, sinks_N=sinks_N, mesh=mesh
        )
        return self.o(out_TNH.reshape(x_TD.shape[0], -1)), pages

    def _heads(
        self, x_TX: jax.Array, num_heads: int, norm: Norm | None, rope: RopeTable | None
    ) -> jax.Array:
        """``[T, heads * H]`` as ``[T, heads, H]``, normalised and rotated as the spec says."""
        spec = self.spec
        if norm is not None and spec.qk_norm_over == "all":
            x_TX, norm = norm(x_TX), None
        x_TXH = x_TX.reshape(x_TX.shape[0], num_heads, spec.head_dim)
        if norm is not None and not spec.qk_norm_after_rope:
            x_TXH, norm = norm(x_TXH), None
        x_TXH = self._clipped(x_TXH)
        if spec.rope is not None:
            assert rope is not None
            x_TXH = rotate(spec.rope, rope, x_TXH)
        return x_TXH if norm is None else norm(x_TXH)

    def _clipped(self, x_TXH: jax.Array) -> jax.Array:
        clip = self.spec.qkv_clip
        return x_TXH if clip is None else jnp.clip(x_TXH, -clip, clip)
