"""One block: a mixer and an MLP on a residual stream, with norms before and/or after each."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jaxinfer.batch import Ragged
from jaxinfer.config import LayerSpec, MlpSpec, MoeSpec, NormSpec
from jaxinfer.layers.attention import Attention
from jaxinfer.layers.mlp import Mlp
from jaxinfer.layers.moe import Moe
from jaxinfer.layers.norm import Norm
from jaxinfer.layers.parameter import KeySource
from jaxinfer.ops.rope import RopeTable
from pallas_kernels import KVPages


class Block(nnx.Module):
    """Builds what its ``LayerSpec`` says; has no choices of its own."""

    def __init__(self, spec: LayerSpec, width: int, dtype: jnp.dtype, *, rngs: KeySource):
        def norm(norm_spec: NormSpec | None) -> Norm | None:
            return None if norm_spec is None else Norm(norm_spec, width, dtype, rngs=rngs)

        def mlp(mlp_spec: MlpSpec | MoeSpec | None) -> Mlp | Moe | None:
            if isinstance(mlp_spec, MoeSpec):
                return Moe(mlp_spec, width, dtype, rngs=rngs)
            return None if mlp_spec is None else Mlp(mlp_spec, width, dtype, rngs=rngs)

        has_mlp = spec.mlp is not None
        self.spec = spec
        self.mixer_norm = norm(spec.pre_norm)
        self.mixer = Attention(spec.mixer, width, dtype, rngs=rngs)
        self.mixer_post_norm = norm(spec.post_norm)
        self.mlp_norm = norm(spec.pre_norm) if has_mlp and not spec.shared_norm else None
        self.mlp = mlp(spec.mlp)
        self.mlp_post_norm = norm(spec.post_norm) if has_mlp else None

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
        """The residual stream after this block, in its own dtype, and the written pages."""
        mixer_in = _maybe(self.mixer_norm, x_TD)
        mixed, pages = self.mixer(mixer_in, rope, query_scale_T, pages, page_table_SM, ragged, mesh)
        out_TD = self._add(x_TD, mixed, self.mixer_post_norm)
        if self.mlp is None:
            return out_TD, pages
        if self.spec.shared_norm:
            mlp_in = mixer_in
        else:
            mlp_in = _maybe(self.mlp_norm, x_TD if self.spec.parallel else out_TD)
        if isinstance(self.mlp, Moe):
            branch = self.mlp(mlp_in, ragged.live_tokens(x_TD.shape[0]), mesh)
        else:
            branch = self.mlp(mlp_in)
        return self._add(out_TD, branch, self.mlp_post_norm), pages

    def _add(self, x_TD: jax.Array, branch_TD: jax.Array, post_norm: Norm | None) -> jax.Array:
        branch_TD = _maybe(post_norm, branch_TD) * jnp.float32(self.spec.residual_scale)
        return (x_TD.astype(jnp.float32) + branch_TD).astype(x_TD.dtype)


def _maybe(norm: Norm | None, x_TD: jax.Array) -> jax.Array:
    return x_TD if norm is None else norm(x_TD)
