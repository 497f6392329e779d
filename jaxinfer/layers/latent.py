"""Multi-head latent attention with its projections (MLA; arXiv 2405.04434)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jaxinfer.batch import Ragged
from jaxinfer.config import LatentSpec
from jaxinfer.layers.linear import Linear, apply_each
from jaxinfer.layers.norm import Norm
from jaxinfer.layers.parameter import Initializer, KeySource, parameter
from jaxinfer.ops.latent import Heads, attend_latents
from jaxinfer.ops.rope import RopeTable, rotate
from jaxinfer.shapes import Shape
from pallas_kernels import LatentPages

#: A matrix ``[in, out]`` or ``[out, in]`` for each head keeps the variance of its input.
_fan_in_last: Initializer = nnx.initializers.lecun_normal(in_axis=-1, out_axis=-2, batch_axis=0)
_fan_in_first: Initializer = nnx.initializers.lecun_normal(batch_axis=0)


class LatentAttention(nnx.Module):
    """Makes a latent of the input, and queries; normed and rotated they meet over the pages.

    ``q`` is absent where queries come of a latent of their own, through ``q_down`` and ``q_up``.
    """

    def __init__(self, spec: LatentSpec, width: int, dtype: jnp.dtype, *, rngs: KeySource):
        self.spec = spec
        num_heads, rank = spec.num_heads, spec.kv_rank
        q_size, bias = num_heads * spec.query_dim, spec.down_bias
        down, up = ("embed", "latent"), ("latent", "heads")

        def linear(size_in: int, size_out: int, axes: tuple[str, str], bias: bool) -> Linear:
            return Linear(size_in, size_out, dtype, axes, bias=bias, rngs=rngs)

        # One product of the input, or two with a norm between them.
        q_rank, norm = spec.q_rank, spec.query_norm
        self.q = linear(width, q_size, ("embed", "heads"), False) if q_rank is None else None
        self.q_down = linear(width, q_rank, down, bias) if q_rank else None
        self.q_norm = Norm(norm, q_rank, dtype, rngs=rngs) if norm and q_rank else None
        self.q_up = linear(q_rank, q_size, up, False) if q_rank else None
        self.kv_down = linear(width, rank + spec.rope_dim, down, bias)
        self.kv_norm = Norm(spec.latent_norm, rank, dtype, rngs=rngs)
        self.k_up = PerHead((num_heads, spec.nope_dim, rank), dtype, _fan_in_last, rngs=rngs)
        self.v_up = PerHead((num_heads, rank, spec.value_dim), dtype, _fan_in_first, rngs=rngs)
        out_size = num_heads * spec.value_dim
        self.o = linear(out_size, width, ("heads", "embed"), spec.out_bias)

    def __call__(
        self,
        x_TD: jax.Array,
        rope: RopeTable | None,
        query_scale_T: jax.Array | None,
        pages: LatentPages,
        page_table_SM: jax.Array,
        ragged: Ragged,
        mesh: Mesh,
    ) -> tuple[jax.Array, LatentPages]:
        """Float32 ``[T, D]`` and the pages with this step's latents in them.

        ``query_scale_T``: None, for no such spec has a ``query_temperature``.
        """
        assert rope is not None
        assert query_scale_T is None
        spec, num_tokens = self.spec, x_TD.shape[0]
        q, kv_TX = self._project(x_TD)
        latent_TR = self.kv_norm(kv_TX[:, : spec.kv_rank])
        k_T1r = rotate(spec.rope, rope, kv_TX[:, None, spec.kv_rank :])
        q_TNH = q.reshape(num_tokens, spec.num_heads, spec.query_dim)
        heads = Heads(
            q_nope_TNh=q_TNH[..., : spec.nope_dim],
            q_rope_TNr=rotate(spec.rope, rope, q_TNH[..., spec.nope_dim :]),
            k_up_NhR=self.k_up.kernel.get_value(),
            v_up_NRv=self.v_up.kernel.get_value(),
        )
        out_TNv, pages = attend_latents(
            spec, heads, latent_TR, k_T1r[:, 0], pages, page_table_SM, ragged, mesh=mesh
        )
        return self.o(out_TNv.reshape(num_tokens, -1)), pages

    def _project(self, x_TD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Queries ``[T, N (h + r)]``, and latents beside rotary parts ``[T, R + r]``."""
        dtype = x_TD.dtype
        if self.q is not None:
            q, kv = apply_each((self.q, self.kv_down), x_TD)
            return q.astype(dtype), kv.astype(dtype)
        assert self.q_down is not None
        assert self.q_norm is not None
        assert self.q_up is not None
        q, kv = apply_each((self.q_down, self.kv_down), x_TD)
        return self.q_up(self.q_norm(q.astype(dtype))).astype(dtype), kv.astype(dtype)


class PerHead(nnx.Module):
    """A matrix for each head, ``[N, ...]``."""

    def __init__(self, shape: Shape, dtype: jnp.dtype, init: Initializer, *, rngs: KeySource):
        self.kernel = parameter(rngs, shape, dtype, ("heads", None, None), init)
