"""One block: a mixer and an MLP on a residual stream, with norms before and/or after each."""

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jaxinfer.batch import Ragged
from jaxinfer.cache import Pages
from jaxinfer.config import (
    AltUpSpec,
    LatentSpec,
    LayerInputSpec,
    LayerSpec,
    MixerSpec,
    MlpSpec,
    MoeSpec,
    NormSpec,
)
from jaxinfer.layers.altup import AltUp
from jaxinfer.layers.attention import Attention
from jaxinfer.layers.latent import LatentAttention
from jaxinfer.layers.laurel import Laurel
from jaxinfer.layers.layer_input import LayerInput
from jaxinfer.layers.mlp import Mlp
from jaxinfer.layers.moe import Moe
from jaxinfer.layers.norm import Norm, maybe_normed
from jaxinfer.layers.parameter import KeySource, ones, parameter
from jaxinfer.ops.rope import RopeTable


class Block(nnx.Module):
    """Builds what its ``LayerSpec`` says; has no choices of its own."""

    def __init__(
        self,
        spec: LayerSpec,
        width: int,
        dtype: jnp.dtype,
        *,
        altup: AltUpSpec | None = None,
        layer_input: LayerInputSpec | None = None,
        rngs: KeySource,
    ):
        def norm(norm_spec: NormSpec | None) -> Norm | None:
            return None if norm_spec is None else Norm(norm_spec, width, dtype, rngs=rngs)

        def mixer(mixer_spec: MixerSpec) -> Attention | LatentAttention:
            if isinstance(mixer_spec, LatentSpec):
                return LatentAttention(mixer_spec, width, dtype, rngs=rngs)
            owns_kv = spec.kv_from is None
            return Attention(mixer_spec, width, dtype, owns_kv=owns_kv, rngs=rngs)

        def mlp(mlp_spec: MlpSpec | MoeSpec | None) -> Mlp | Moe | None:
            if isinstance(mlp_spec, MoeSpec):
                return Moe(mlp_spec, width, dtype, rngs=rngs)
            return None if mlp_spec is None else Mlp(mlp_spec, width, dtype, rngs=rngs)

        # Whose pages it reads is the decoder's business: layers that differ in it are traced once.
        self.spec = replace(spec, kv_from=None)
        self.mixer_norm = norm(spec.pre_norm)
        self.mixer = mixer(spec.mixer)
        self.mixer_post_norm = norm(spec.post_norm)
        self.laurel = Laurel(spec.laurel, width, dtype, rngs=rngs) if spec.laurel else None
        self.mlp_norm = norm(spec.pre_norm) if spec.has_mlp_norm else None
        self.mlp = mlp(spec.mlp)
        self.mlp_post_norm = norm(spec.post_norm) if spec.mlp is not None else None
        self.altup = AltUp(altup, width, dtype, rngs=rngs) if altup else None
        self.input = LayerInput(layer_input, width, dtype, rngs=rngs) if layer_input else None
        self.scale = parameter(rngs, (1,), dtype, (None,), ones) if spec.learned_scale else None

    def __call__(
        self,
        x: jax.Array,
        rope: RopeTable | None,
        query_scale_T: jax.Array | None,
        pages: Any,
        page_table_SM: jax.Array,
        ragged: Ragged,
        mesh: Mesh,
        input_TI: jax.Array | None = None,
    ) -> tuple[jax.Array, Pages]:
        """The residual stream ``[T, D]`` after this block, in its own dtype, and the written pages.

        With AltUp ``x`` is all streams, ``[U, T, D]``. ``input_TI``: the layer's own input.
        """
        context = (rope, query_scale_T, pages, page_table_SM, ragged, mesh)
        if self.altup is None:
            out_TD, pages = self._mix(x, *context)
            if self.input is not None:
                assert input_TI is not None
                out_TD = out_TD + self.input(out_TD, input_TI)
            return self._scaled(out_TD), pages
        predicted_UTD = self.altup.predict(x)
        out_TD, pages = self._mix(predicted_UTD[self.altup.spec.active], *context)
        out_UTD = self.altup.correct(predicted_UTD, out_TD)
        if self.input is not None:
            assert input_TI is not None
            added_TD = self.input(self.altup.handed_on(out_UTD), input_TI)
            out_UTD = out_UTD.at[1:].add(added_TD[None])
        return self._scaled(out_UTD), pages

    def _mix(
        self,
        x_TD: jax.Array,
        rope: RopeTable | None,
        query_scale_T: jax.Array | None,
        pages: Any,
        page_table_SM: jax.Array,
        ragged: Ragged,
        mesh: Mesh,
    ) -> tuple[jax.Array, Pages]:
        """The stream after mixer and MLP."""
        mixer_in = maybe_normed(self.mixer_norm, x_TD)
        mixed, pages = self.mixer(mixer_in, rope, query_scale_T, pages, page_table_SM, ragged, mesh)
        out_TD = self._add(x_TD, mixed, self.mixer_post_norm)
        if self.laurel is not None:
            both_TD = out_TD.astype(jnp.float32) + self.laurel(mixer_in)
            out_TD = (both_TD * jnp.float32(math.sqrt(0.5))).astype(x_TD.dtype)
        if self.mlp is None:
            return out_TD, pages
        if self.spec.shared_norm:
            mlp_in = mixer_in
        else:
            mlp_in = maybe_normed(self.mlp_norm, x_TD if self.spec.parallel else out_TD)
        if isinstance(self.mlp, Moe):
            branch = self.mlp(mlp_in, ragged.live_tokens(x_TD.shape[0]), mesh)
        else:
            branch = self.mlp(mlp_in)
        return self._add(out_TD, branch, self.mlp_post_norm), pages

    def _add(self, x_TD: jax.Array, branch_TD: jax.Array, post_norm: Norm | None) -> jax.Array:
        branch_TD = maybe_normed(post_norm, branch_TD) * jnp.float32(self.spec.residual_scale)
        return (x_TD.astype(jnp.float32) + branch_TD).astype(x_TD.dtype)

    def _scaled(self, x: jax.Array) -> jax.Array:
        if self.scale is None:
            return x
        return x * jnp.broadcast_to(self.scale.get_value().astype(x.dtype), x.shape)
