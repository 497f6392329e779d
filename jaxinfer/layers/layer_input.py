"""A vector of each token for each layer, beside the residual stream (see ``LayerInputSpec``)."""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from jaxinfer.config import LayerInputSpec
from jaxinfer.layers.embedding import Embedding
from jaxinfer.layers.linear import Linear
from jaxinfer.layers.norm import Norm
from jaxinfer.layers.parameter import KeySource
from jaxinfer.ops.activation import activate


class LayerInputs(nnx.Module):
    """The vectors of all layers, from a table and from the token's embedding."""

    def __init__(
        self,
        spec: LayerInputSpec,
        num_layers: int,
        width: int,
        dtype: jnp.dtype,
        *,
        rngs: KeySource,
    ):
        self.spec, self.num_layers, self.width = spec, num_layers, width
        all_layers = num_layers * spec.width
        self.table = Embedding(spec.vocab_size, all_layers, dtype, "vocab", rngs=rngs)
        self.project = Linear(width, all_layers, dtype, ("embed", None), rngs=rngs)
        self.norm = Norm(spec.norm, spec.width, dtype, rngs=rngs)

    def __call__(self, tokens_T: jax.Array, x_TD: jax.Array) -> jax.Array:
        """``[T, L, I]`` of the tokens and their scaled embeddings, in the latter's dtype."""
        with jax.named_scope("layer_inputs"):
            spec, dtype = self.spec, x_TD.dtype
            shape = (x_TD.shape[0], self.num_layers, spec.width)
            rows_T = jnp.where(tokens_T < spec.vocab_size, tokens_T, 0)
            scale = jnp.asarray(math.sqrt(spec.width), dtype)
            looked_up = (self.table(rows_T) * scale).reshape(shape)
            projected = self.project(x_TD) * jnp.float32(self.width**-0.5)
            projected = self.norm(projected.astype(dtype).reshape(shape))
            return (looked_up + projected) * jnp.asarray(math.sqrt(0.5), dtype)


class LayerInput(nnx.Module):
    """What one layer makes of its vector: ``norm(widen(act(narrow(x)) * vector))``."""

    def __init__(self, spec: LayerInputSpec, width: int, dtype: jnp.dtype, *, rngs: KeySource):
        self.spec = spec
        self.narrow = Linear(width, spec.width, dtype, ("embed", None), rngs=rngs)
        self.widen = Linear(spec.width, width, dtype, (None, "embed"), rngs=rngs)
        self.norm = Norm(spec.post_norm, width, dtype, rngs=rngs)

    def __call__(self, x_TD: jax.Array, input_TI: jax.Array) -> jax.Array:
        """``[T, D]`` to be added to the residual stream, in its dtype."""
        with jax.named_scope("layer_input"):
            gate_TI = activate(self.spec.activation, self.narrow(x_TD))
            gated_TI = gate_TI.astype(x_TD.dtype) * input_TI
            return self.norm(self.widen(gated_TI).astype(x_TD.dtype))
